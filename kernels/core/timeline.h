// SPDX-License-Identifier: Apache-2.0
// Timeline: what a rank did when, for traces. Two lanes a rank: the phases of its queue
// (PhaseClock) and its transfers (the communicators); the intervals of a lane follow each other.
// Memory is taken and touched at construction; a timeline that is full drops what comes and counts
// it. Times are of steady_clock, which is one clock for all processes of a host. Used by the thread
// that owns the queue.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace annulus::kernels {

struct Interval {
  enum class Lane : uint8_t { kCompute, kTransfer };

  int64_t begin_ns = 0, end_ns = 0;
  std::array<char, 24> name{};  // shorter, zeros behind it
  Lane lane = Lane::kCompute;
  std::array<uint8_t, 3> unused{};
  int32_t layer = -1;  // -1: of none
  // Compute: which payload attention looks at, 0 the own one. Transfer: the hop that a payload
  // makes, from 1: hop h + 1 is in flight while h is looked at. -1: of none.
  int32_t hop = -1;
  // Of a transfer:
  int32_t sequence = 0;        // OpId's
  int32_t to = -1, from = -1;  // world ranks of a hop; -1: nothing goes that way, or a collective
  int64_t sent_bytes = 0, received_bytes = 0;

  void set_name(std::string_view text) {
    std::copy_n(text.data(), std::min(text.size(), name.size() - 1), name.data());
  }
};
// It travels between processes as it lies.
static_assert(std::is_trivially_copyable_v<Interval> && sizeof(Interval) == 80);

inline int64_t nanoseconds(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

class Timeline {
 public:
  explicit Timeline(size_t capacity) : intervals_(capacity) {}

  void add(const Interval& interval) {
    if (count_ < intervals_.size()) {
      intervals_[count_++] = interval;
    } else {
      ++dropped_;
    }
  }
  std::span<const Interval> intervals() const { return {intervals_.data(), count_}; }
  int64_t dropped() const { return dropped_; }
  void clear() { count_ = 0, dropped_ = 0; }

 private:
  std::vector<Interval> intervals_;
  size_t count_ = 0;
  int64_t dropped_ = 0;
};

}  // namespace annulus::kernels
