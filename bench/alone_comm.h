// SPDX-License-Identifier: Apache-2.0
// AloneComm: the communicator of one rank whose peers are not there, so that its whole work runs on
// one device. What would come from peers is this rank's own payload once more, copied on the
// device: the same bytes are written, rows have the shape and the size of real ones, and positions,
// which decide what is computed, come from the plan anyway. Answers mean nothing. The copies are
// Phase::kWait. Counts what would have travelled. One thread; no errors.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>

#include "kernels/core/phase.h"
#include "parallel/communicator.h"

namespace annulus::bench {

// Of one rank: what it would have sent.
struct Traffic {
  int64_t sums = 0, sum_floats = 0;
  int64_t hops = 0, hop_bytes = 0;
  int64_t collectives = 0, collective_bytes = 0;  // gathers and all-to-alls, to all peers together

  Traffic operator-(const Traffic& before) const {
    return {sums - before.sums,
            sum_floats - before.sum_floats,
            hops - before.hops,
            hop_bytes - before.hop_bytes,
            collectives - before.collectives,
            collective_bytes - before.collective_bytes};
  }
};

template <class Queue>
class AloneComm final : public parallel::Communicator<Queue> {
 public:
  using Bytes = parallel::Bytes;
  using ConstBytes = parallel::ConstBytes;
  using OpId = parallel::OpId;

  AloneComm(int32_t rank, int32_t size) : rank_(rank), size_(size) {}
  const Traffic& traffic() const { return traffic_; }

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return size_; }
  void all_reduce(Queue& queue, std::span<float> data, const OpId&) override {
    if (size_ == 1) return;
    const kernels::InPhase phase(queue, kernels::Phase::kWait);
    ++traffic_.sums;
    traffic_.sum_floats += static_cast<int64_t>(data.size());
    const typename Queue::Mark mark(queue);
    auto* const other = queue.template scratch<float>(static_cast<int64_t>(data.size()));
    copy(queue, std::as_bytes(data), std::as_writable_bytes(std::span(other, data.size())));
  }
  void all_gather(Queue& queue, ConstBytes own, Bytes out, std::span<const int64_t> bytes,
                  const OpId&) override {
    const kernels::InPhase phase(queue, kernels::Phase::kWait);
    size_t at = 0;
    for (const int64_t n : bytes) {
      stand_in(queue, own, out.subspan(at, static_cast<size_t>(n)));
      at += static_cast<size_t>(n);
    }
    count_collective(static_cast<int64_t>(own.size()) * (size_ - 1));
  }
  void all_to_all(Queue& queue, std::span<const ConstBytes> send, std::span<const Bytes> receive,
                  const OpId&) override {
    const kernels::InPhase phase(queue, kernels::Phase::kWait);
    int64_t sent = 0;
    for (size_t r = 0; r < send.size(); ++r) {
      stand_in(queue, send[r], receive[r]);
      if (static_cast<int32_t>(r) != rank_) sent += static_cast<int64_t>(send[r].size());
    }
    count_collective(sent);
  }
  parallel::Transfer exchange(Queue& queue, ConstBytes send, int32_t to, Bytes receive, int32_t,
                              const OpId&) override {
    if (to != rank_ && !send.empty()) {
      ++traffic_.hops;
      traffic_.hop_bytes += static_cast<int64_t>(send.size());
    }
    const kernels::InPhase phase(queue, kernels::Phase::kWait);
    stand_in(queue, send, receive);
    return parallel::Transfer(1);
  }
  void await(Queue&, parallel::Transfer transfer) override { transfer.release(); }
  void progress() override {}
  void set_deadline(std::chrono::steady_clock::time_point) override {}
  void abort(const std::string&) override {}
  int64_t bytes_sent() const override { return traffic_.hop_bytes + traffic_.collective_bytes; }
  double waited_us() const override { return 0; }

 private:
  void count_collective(int64_t bytes) {
    if (bytes == 0) return;
    ++traffic_.collectives;
    traffic_.collective_bytes += bytes;
  }
  static void copy(Queue& queue, ConstBytes from, Bytes to) {
    queue.copy(to.data(), from.data(), static_cast<int64_t>(to.size()));
  }
  // `from` as often as it takes; zeros where there is nothing.
  static void stand_in(Queue& queue, ConstBytes from, Bytes to) {
    if (from.empty() && !to.empty())
      queue.fill(to.data(), std::byte{0}, static_cast<int64_t>(to.size()));
    while (!from.empty() && !to.empty()) {
      const size_t n = std::min(from.size(), to.size());
      copy(queue, from.first(n), to.first(n));
      to = to.subspan(n);
    }
  }

  const int32_t rank_, size_;
  Traffic traffic_;
};

}  // namespace annulus::bench
