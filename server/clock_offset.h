// SPDX-License-Identifier: Apache-2.0
// ClockOffset: what the steady clock of another process's host shows beyond this one's, from
// readings that came over the network, as NTP does: a reading is taken to be of the middle of its
// round trip, which is wrong by half of that at most. The quickest of the last readings counts: old
// ones know nothing of how far clocks have drifted since. Plain data, no clock of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace annulus::server {

class ClockOffset {
 public:
  static constexpr size_t kReadings = 8;

  // Nanoseconds; theirs: what the other clock showed between sent and received. One that cannot be
  // is left out, but counted as asked for.
  void add(int64_t sent, int64_t theirs, int64_t received) {
    ++asked_;
    constexpr int64_t kLatest = int64_t{1} << 60;
    if (received < sent || theirs <= -kLatest || theirs >= kLatest) return;
    const int64_t half = (received - sent + 1) / 2;
    readings_[count_++ % kReadings] = {.offset = theirs - (sent + half), .error = half};
  }
  bool settled() const { return asked_ >= kReadings; }

  struct Reading {
    int64_t offset = 0, error = -1;  // theirs - ours; half the round trip, -1: there is none
  };
  // Of two processes on one host the clock is the same: where nothing says otherwise, the offset is
  // 0.
  Reading best() const {
    if (count_ == 0) return {};
    Reading out = *std::min_element(
        readings_.begin(),
        readings_.begin() + static_cast<std::ptrdiff_t>(std::min(count_, kReadings)),
        [](const Reading& a, const Reading& b) { return a.error < b.error; });
    if (std::abs(out.offset) <= out.error) out.offset = 0;
    return out;
  }

 private:
  std::array<Reading, kReadings> readings_{};
  size_t asked_ = 0, count_ = 0;
};

}  // namespace annulus::server
