// SPDX-License-Identifier: Apache-2.0
// measure_link(), instantiated for each queue in on_<device>.cc.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "parallel/measure_link.h"

namespace annulus::parallel {

// Every value becomes the largest over the ranks: times, so the worst. Collective.
template <class Queue>
void take_worst(Queue& queue, Communicator<Queue>& group, std::span<double> values,
                const OpId& op) {
  const typename Queue::Mark mark(queue);
  const auto n = static_cast<size_t>(group.size());
  const std::vector<int64_t> sizes(n, static_cast<int64_t>(values.size_bytes()));
  std::vector<double> all(n * values.size());
  double* const gathered = queue.template scratch<double>(static_cast<int64_t>(all.size()));
  const std::span<const double> own = queue.upload(std::span<const double>(values));
  group.all_gather(queue, std::as_bytes(own),
                   std::as_writable_bytes(std::span(gathered, all.size())), sizes, op);
  queue.download(std::span(all), gathered);
  queue.finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
  for (size_t i = 0; i < all.size(); ++i) {
    values[i % values.size()] = std::max(values[i % values.size()], all[i]);
  }
}

namespace link_measurement {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPayloadBytes = 1 << 20;
constexpr int kLatencyBatches = 12, kHopsPerBatch = 16;
constexpr int kMaxRounds = 9;                      // of a megabyte
constexpr double kBandwidthUs = 80e3;              // time for those
constexpr double kTaskUs = 25;                     // of computing between two polls
constexpr int64_t kAddRows = 64, kAddCols = 1024;  // a task of a device

inline double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

inline double median(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class Queue>
class Meter {
 public:
  Meter(Communicator<Queue>& ring, Queue& queue, int64_t step)
      : ring_(ring),
        queue_(queue),
        op_{.step = step, .layer = 1023, .what = "link measurement"},
        out_(queue.template scratch<std::byte>(kPayloadBytes), kPayloadBytes),
        in_(queue.template scratch<std::byte>(kPayloadBytes), kPayloadBytes) {
    queue.fill(out_.data(), std::byte{0}, kPayloadBytes);
    if constexpr (!Queue::kHostMemory) {
      float* const data = queue.template scratch<float>(kAddRows * kAddCols);
      task_ = kernels::matrix(data, kAddRows, kAddCols);
      queue.fill(reinterpret_cast<std::byte*>(data), std::byte{0}, kAddRows * kAddCols * 4);
    }
    finish();
  }

  Transfer start_hop(int64_t bytes) {
    const int32_t n = ring_.size(), me = ring_.rank();
    ++op_.sequence;
    return ring_.exchange(queue_, out_.first(static_cast<size_t>(bytes)), (me + 1) % n,
                          in_.first(static_cast<size_t>(bytes)), (me + n - 1) % n, op_);
  }
  void hop(int64_t bytes) {
    ring_.await(queue_, start_hop(bytes));
    finish();
  }

  // Nobody leaves before all have arrived; everybody leaves with the largest value of each.
  template <size_t N>
  std::array<double, N> worst(std::array<double, N> values) {
    ++op_.sequence;
    take_worst(queue_, ring_, values, op_);
    return values;
  }

  // One of a series of operations, which start when the one before has ended.
  template <class Operation>
  double one_of_many_us(const Operation& operation) {
    std::vector<double> batches;
    for (int batch = 0; batch < kLatencyBatches; ++batch) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kHopsPerBatch; ++i) operation();
      batches.push_back(us_since(start) / kHopsPerBatch);
    }
    return median(batches);
  }

  // An operation that all ranks start together.
  template <class Operation>
  double together_us(int rounds, const Operation& operation) {
    std::vector<double> times;
    for (int i = 0; i < rounds; ++i) {
      worst<1>({0});
      const Clock::time_point start = Clock::now();
      operation();
      times.push_back(us_since(start));
    }
    return median(times);
  }

  // What a hop adds to computing of about 1.5 times its length.
  double exposed_us(int64_t bytes, double hop_us, int rounds) {
    const int64_t tasks =
        std::max<int64_t>(1, static_cast<int64_t>(1.5 * hop_us / task_us() * parallel_tasks()));
    std::vector<double> added;
    for (int i = 0; i < rounds; ++i) {
      worst<1>({0});
      Clock::time_point start = Clock::now();
      compute(tasks);
      finish();
      const double alone = us_since(start);
      worst<1>({0});
      start = Clock::now();
      Transfer transfer = start_hop(bytes);
      compute(tasks);
      ring_.await(queue_, std::move(transfer));
      finish();
      added.push_back(us_since(start) - alone);
    }
    return std::clamp(median(added), 0.0, hop_us);
  }

  // To every other rank, and from every other; size() parts fit the buffers.
  void all_to_all(int64_t bytes_each) {
    const auto n = static_cast<size_t>(ring_.size()), part = static_cast<size_t>(bytes_each);
    std::vector<ConstBytes> send(n);
    std::vector<Bytes> receive(n);
    for (size_t r = 0; r < n; ++r) {
      if (r == static_cast<size_t>(ring_.rank())) continue;
      send[r] = ConstBytes(out_).subspan(r * part, part);
      receive[r] = in_.subspan(r * part, part);
    }
    ++op_.sequence;
    ring_.all_to_all(queue_, send, receive, op_);
    finish();
  }

 private:
  // A chain of dependent multiply-adds: the same time on every call, no memory traffic.
  static float burn(int64_t steps) {
    float x = 0.5f;
    for (int64_t i = 0; i < steps; ++i) x = x * 0.999f + 0.001f;
    return x;
  }
  int parallel_tasks() const {
    if constexpr (Queue::kHostMemory) return queue_.threads();
    return 1;
  }
  void finish() { queue_.finish(Clock::now() + std::chrono::seconds(60)); }

  double task_us() {
    if (task_us_ == 0) task_us_ = calibrate();
    return task_us_;
  }
  double calibrate() {
    double best = 1e30;
    if constexpr (!Queue::kHostMemory) {
      for (int i = 0; i < 5; ++i) {
        finish();
        const Clock::time_point start = Clock::now();
        compute(kDeviceTasks);
        finish();
        best = std::min(best, us_since(start) / kDeviceTasks);
      }
      return best;
    }
    for (int i = 0; i < 5; ++i) {
      const Clock::time_point start = Clock::now();
      sink_.store(burn(kProbeSteps), std::memory_order_relaxed);
      best = std::min(best, us_since(start));
    }
    steps_ =
        std::max<int64_t>(1, static_cast<int64_t>(kTaskUs * kProbeSteps / std::max(best, 1.0)));
    return best * static_cast<double>(steps_) / kProbeSteps;
  }
  void compute(int64_t tasks) {
    if constexpr (!Queue::kHostMemory) {
      for (int64_t i = 0; i < tasks; ++i) kernels::add(queue_, task_, kernels::ConstTensor(task_));
      return;
    } else {
      const std::thread::id owner = std::this_thread::get_id();
      queue_.parallel_for(tasks, [&](int64_t, int) {
        sink_.store(burn(steps_), std::memory_order_relaxed);
        if (std::this_thread::get_id() == owner) ring_.progress();
      });
    }
  }

  static constexpr int64_t kProbeSteps = 20000;
  static constexpr int kDeviceTasks = 32;
  Communicator<Queue>& ring_;
  Queue& queue_;
  OpId op_;
  Bytes out_, in_;  // of the queue: after an error they must outlive the wire
  kernels::Tensor task_;
  std::atomic<float> sink_ = 0;
  int64_t steps_ = 0;
  double task_us_ = 0;
};

}  // namespace link_measurement

template <class Queue>
LinkMeasure measure_link(Communicator<Queue>& ring, Queue& queue, int64_t step) {
  using namespace link_measurement;
  if (ring.size() == 1) return {};
  const typename Queue::Mark mark(queue);
  Meter<Queue> meter(ring, queue, step);
  const auto payload = [&] { meter.hop(kPayloadBytes); };
  for (int i = 0; i < 8; ++i) meter.hop(8);  // connections are made by the first messages
  payload();
  // As many rounds on every rank: the number follows from values that all agree on.
  const auto [small_us, first_us] = meter.template worst<2>(
      {meter.one_of_many_us([&] { meter.hop(8); }), meter.together_us(1, payload)});
  const int rounds = static_cast<int>(std::clamp(kBandwidthUs / first_us, 1.0, double{kMaxRounds}));
  const double hop_us = meter.template worst<1>({meter.together_us(rounds, payload)})[0];
  const auto [overhead_us, exposed_us] = meter.template worst<2>(
      {meter.exposed_us(8, small_us, kMaxRounds), meter.exposed_us(kPayloadBytes, hop_us, rounds)});
  LinkMeasure link;
  link.overhead_us = overhead_us;
  link.latency_us = small_us - overhead_us;
  const auto above = [](double us, double small) { return std::max(us - small, us / 10); };
  const double flight_us = above(hop_us, overhead_us);
  link.bytes_per_us = static_cast<double>(kPayloadBytes) / above(hop_us, small_us);
  link.overlap = std::clamp(1 - (exposed_us - overhead_us) / flight_us, 0.0, 1.0);
  link.collective_overhead_us = small_us;
  link.collective_bytes_per_us = link.bytes_per_us;
  if (ring.size() == 2) return link;
  // A megabyte in all, or less where that would take long.
  const int64_t others = ring.size() - 1;
  const double share = std::min(1.0, kBandwidthUs / kMaxRounds / hop_us);
  const auto each =
      std::max<int64_t>(64, static_cast<int64_t>(share * kPayloadBytes) / (others + 1));
  const auto [start_us, whole_us] =
      meter.template worst<2>({meter.one_of_many_us([&] { meter.all_to_all(8); }),
                               meter.together_us(rounds, [&] { meter.all_to_all(each); })});
  link.collective_overhead_us = start_us;
  link.collective_bytes_per_us = static_cast<double>(each * others) / above(whole_us, start_us);
  return link;
}

}  // namespace annulus::parallel
