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

  double latency_us() {
    std::vector<double> batches;
    for (int batch = 0; batch < kLatencyBatches; ++batch) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kHopsPerBatch; ++i) hop(8);
      batches.push_back(us_since(start) / kHopsPerBatch);
    }
    return median(batches);
  }

  double payload_us(int rounds) {
    std::vector<double> times;
    for (int i = 0; i < rounds; ++i) {
      worst<1>({0});
      const Clock::time_point start = Clock::now();
      hop(kPayloadBytes);
      times.push_back(us_since(start));
    }
    return median(times);
  }

  // Share of a hop that hides behind computing of about 1.5 times its length.
  double overlap(double hop_us, int rounds) {
    const double task_us = calibrate();
    const int64_t tasks =
        std::max<int64_t>(1, static_cast<int64_t>(1.5 * hop_us / task_us * parallel_tasks()));
    std::vector<double> alone, both;
    for (int i = 0; i < rounds; ++i) {
      worst<1>({0});
      Clock::time_point start = Clock::now();
      compute(tasks);
      finish();
      alone.push_back(us_since(start));
      worst<1>({0});
      start = Clock::now();
      Transfer transfer = start_hop(kPayloadBytes);
      compute(tasks);
      ring_.await(queue_, std::move(transfer));
      finish();
      both.push_back(us_since(start));
    }
    const double exposed = median(both) - median(alone);
    return std::clamp(1 - exposed / hop_us, 0.0, 1.0);
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
};

}  // namespace link_measurement

template <class Queue>
LinkMeasure measure_link(Communicator<Queue>& ring, Queue& queue, int64_t step) {
  using namespace link_measurement;
  if (ring.size() == 1) return {};
  const typename Queue::Mark mark(queue);
  Meter<Queue> meter(ring, queue, step);
  for (int i = 0; i < 8; ++i) meter.hop(8);  // connections are made by the first messages
  meter.payload_us(1);
  const double latency = meter.latency_us();
  // As many rounds on every rank: the number follows from a value that all agree on.
  const double first = meter.template worst<1>({meter.payload_us(1)})[0];
  const int rounds = static_cast<int>(std::clamp(kBandwidthUs / first, 1.0, double{kMaxRounds}));
  const double hop_us = meter.template worst<1>({meter.payload_us(rounds)})[0];
  const double overlap = meter.overlap(hop_us, rounds);
  const auto [slowest, least_hidden] = meter.template worst<2>({latency, -overlap});
  return {
      .latency_us = slowest,
      .bytes_per_us = static_cast<double>(kPayloadBytes) / std::max(hop_us - slowest, hop_us / 10),
      .overlap = -least_hidden};
}

}  // namespace annulus::parallel
