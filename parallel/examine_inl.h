// SPDX-License-Identifier: Apache-2.0
// examine(), instantiated for each queue in on_<device>.cc.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "parallel/examine.h"
#include "parallel/measure_link_inl.h"

namespace annulus::parallel {
namespace examination {

using Clock = std::chrono::steady_clock;
using link_measurement::us_since;

// A part runs for longer than the scheduler's turns and than the period of a CPU quota (100 ms):
// shorter ones would show the rate between two interruptions.
constexpr double kPartUs = 150e3;
constexpr int kRounds = 5;
constexpr int kLatencyTrips = 16;
constexpr int64_t kSmall = 64 << 10, kLarge = 1 << 20;  // payloads of a hop, bytes
constexpr double kSmallIsSlowUs = 10e3;                 // then larger ones are not sent
constexpr double kHopUs = 40e3;                         // of payloads, in a round
constexpr int kMostPayloads = 64;
constexpr std::chrono::seconds kPatience{60};

// A device far above a core needs larger work to be busy with.
template <class Queue>
struct Sizes {
  static constexpr bool kHost = Queue::kHostMemory;
  static constexpr int64_t kGemmRows = kHost ? 128 : 4096, kGemmDim = kHost ? 2048 : 8192;
  static constexpr int64_t kReadRows = kHost ? 32768 : 131072, kReadCols = kHost ? 2048 : 8192;
  static constexpr int64_t kCopyBytes = int64_t{kHost ? 64 : 1024} << 20;
  static constexpr int kBatch = kHost ? 1 : 8;  // between two looks at the clock
};

// Weights whose rows are all one row: what matters is that they are read.
template <class Queue>
typename Queue::Matrix weights_of(Queue& queue, int64_t n, int64_t k) {
  std::vector<uint16_t> row(static_cast<size_t>(k), 0x3c00);  // bf16: 1/128
  const kernels::WeightSource source{.format = kernels::WeightFormat::kBF16,
                                     .data = reinterpret_cast<const std::byte*>(row.data()),
                                     .rows = n,
                                     .cols = k};
  return Queue::Matrix::load(queue, {&source, 1}, kernels::Precision::kDefault);
}

template <class Queue>
class Examiner {
 public:
  Examiner(Queue& queue, Groups<Queue> groups, const std::function<void(int, int)>& told)
      : queue_(queue), groups_(groups), told_(told) {
    for (auto* group : {groups_.cp, groups_.tp}) {
      if (group->size() > 1) parts_ += kRounds + 1;
    }
  }

  Examination run() {
    device();
    if (groups_.cp->size() > 1) hops(*groups_.cp, Figure::kCpBandwidth, Figure::kCpLatency);
    if (groups_.tp->size() > 1) hops(*groups_.tp, Figure::kTpBandwidth, Figure::kTpLatency);
    return std::move(out_);
  }

 private:
  void finish() { queue_.finish(Clock::now() + kPatience); }
  void add(Figure figure, double value) { out_[static_cast<size_t>(figure)].push_back(value); }
  void done() {
    if (told_) told_(++done_, parts_);
  }

  // Nobody leaves before all have arrived; the largest value of any rank of the group.
  double meet(Communicator<Queue>& group, double value = 0) {
    for (auto* each : {groups_.cp, groups_.tp, groups_.world}) {
      each->set_deadline(Clock::now() + kPatience);
    }
    take_worst(queue_, group, std::span(&value, 1),
               {.step = 0, .layer = 1023, .sequence = ++meetings_ % 4096, .what = "examination"});
    return value;
  }

  // Runs body for kPartUs while all ranks do; amount: of one body. Amount per nanosecond.
  template <class Body>
  double rate(double amount, const Body& body) {
    meet(*groups_.world);
    const Clock::time_point start = Clock::now();
    double done_amount = 0;
    do {
      for (int i = 0; i < Sizes<Queue>::kBatch; ++i) body();
      finish();
      done_amount += amount * Sizes<Queue>::kBatch;
    } while (us_since(start) < kPartUs);
    return done_amount / us_since(start) * 1e-3;
  }

  void device() {
    using S = Sizes<Queue>;
    using kernels::matrix;
    const typename Queue::Mark mark(queue_);
    const auto zeros = [&](int64_t count) {
      float* const data = queue_.template scratch<float>(count);
      queue_.fill(reinterpret_cast<std::byte*>(data), std::byte{0}, count * 4);
      return data;
    };
    const int64_t most = std::max(S::kGemmRows * S::kGemmDim, S::kReadRows);
    float *const x = zeros(most), *const y = zeros(most);
    std::byte* const from = queue_.template scratch<std::byte>(S::kCopyBytes);
    std::byte* const to = queue_.template scratch<std::byte>(S::kCopyBytes);
    queue_.fill(from, std::byte{1}, S::kCopyBytes);
    queue_.fill(to, std::byte{1}, S::kCopyBytes);
    const auto square = weights_of(queue_, S::kGemmDim, S::kGemmDim);
    const auto tall = weights_of(queue_, S::kReadRows, S::kReadCols);
    const auto multiply = [&](int64_t rows, const typename Queue::Matrix& w) {
      kernels::matmul(queue_, matrix(y, rows, w.n()), kernels::ConstTensor(matrix(x, rows, w.k())),
                      w);
    };
    const auto copy = [&] {
      if constexpr (S::kHost) {
        const int64_t slice = S::kCopyBytes / queue_.threads();
        queue_.parallel_for(queue_.threads(), [&](int64_t i, int) {
          std::memcpy(to + i * slice, from + i * slice, static_cast<size_t>(slice));
        });
      } else {
        queue_.copy(to, from, S::kCopyBytes);
      }
    };
    for (int round = -1; round < kRounds; ++round) {  // the first warms up
      const double gemm = rate(2.0 * S::kGemmRows * S::kGemmDim * S::kGemmDim,
                               [&] { multiply(S::kGemmRows, square); });
      const double read = rate(static_cast<double>(tall.bytes()), [&] { multiply(1, tall); });
      const double copied = rate(static_cast<double>(S::kCopyBytes), copy);
      done();
      if (round < 0) continue;
      add(Figure::kGemm, gemm);
      add(Figure::kRead, read);
      add(Figure::kCopy, copied);
    }
  }

  // Every rank to the next one of its group. Pairs that share no rank measure at once: two turns
  // on an even ring, three on an odd one.
  void hops(Communicator<Queue>& group, Figure bandwidth, Figure latency) {
    const typename Queue::Mark mark(queue_);
    out_buffer_ = {queue_.template scratch<std::byte>(kLarge), kLarge};
    in_buffer_ = {queue_.template scratch<std::byte>(kLarge), kLarge};
    queue_.fill(out_buffer_.data(), std::byte{0}, kLarge);
    finish();
    const int32_t n = group.size(), me = group.rank(), before = (me + n - 1) % n;
    const auto turn_of = [n](int32_t hop) { return n % 2 == 1 && hop == n - 1 ? 2 : hop % 2; };
    const auto in_turns = [&](const auto& mine, const auto& other) {
      for (int turn = 0; turn < 2 + n % 2; ++turn) {
        meet(group);
        ++stage_;
        sequence_ = 0;
        if (turn_of(me) == turn) mine();
        if (turn_of(before) == turn) other();
      }
    };
    // The other side answers with 8 bytes: payloads are there when that comes.
    const auto send = [&](int64_t bytes, int payloads) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < payloads; ++i) move(group, bytes, 0, (me + 1) % n);
      move(group, 0, 8, (me + 1) % n);
      return us_since(start);
    };
    const auto receive = [&](int64_t bytes, int payloads) {
      for (int i = 0; i < payloads; ++i) move(group, 0, bytes, before);
      move(group, 8, 0, before);
    };

    double us = 0;
    in_turns([&] { send(8, 1); }, [&] { receive(8, 1); });  // connections are made
    in_turns([&] { us = send(kSmall, 1); }, [&] { receive(kSmall, 1); });
    const double slowest_us = meet(group, us);  // so that all ranks choose alike
    const int64_t bytes = slowest_us > kSmallIsSlowUs ? kSmall : kLarge;
    const double payload_us = slowest_us * static_cast<double>(bytes) / kSmall;
    const int payloads =
        static_cast<int>(std::clamp(kHopUs / payload_us, 1.0, double{kMostPayloads}));
    done();
    for (int round = 0; round < kRounds; ++round) {
      double trip_us = 0;
      in_turns(
          [&] {
            const Clock::time_point start = Clock::now();
            for (int i = 0; i < kLatencyTrips; ++i) send(8, 1);
            trip_us = us_since(start) / (2 * kLatencyTrips);
            us = send(bytes, payloads);
            us = std::max(us - trip_us, us / 2);  // the answer's way; on a busy machine no more
          },
          [&] {
            for (int i = 0; i < kLatencyTrips; ++i) receive(8, 1);
            receive(bytes, payloads);
          });
      add(latency, trip_us);
      add(bandwidth, static_cast<double>(bytes * payloads) / std::max(us, 1e-3) * 1e-3);
      done();
    }
  }

  // One message each way at most; both sides count along.
  void move(Communicator<Queue>& group, int64_t out_bytes, int64_t in_bytes, int32_t peer) {
    const OpId op{.step = stage_, .layer = 1023, .sequence = ++sequence_, .what = "examination"};
    group.await(queue_,
                group.exchange(queue_, out_buffer_.first(static_cast<size_t>(out_bytes)), peer,
                               in_buffer_.first(static_cast<size_t>(in_bytes)), peer, op));
    finish();
  }

  Queue& queue_;
  Groups<Queue> groups_;
  const std::function<void(int, int)>& told_;
  Examination out_;
  Bytes out_buffer_, in_buffer_;  // of the queue: after an error they must outlive the wire
  int parts_ = kRounds + 1, done_ = 0;
  int32_t meetings_ = 0, sequence_ = 0;
  int64_t stage_ = 0;  // of messages between pairs; 0: meetings
};

}  // namespace examination

template <class Queue>
Examination examine(Queue& queue, Groups<Queue> groups,
                    const std::function<void(int done, int of)>& told) {
  return examination::Examiner<Queue>(queue, groups, told).run();
}

}  // namespace annulus::parallel
