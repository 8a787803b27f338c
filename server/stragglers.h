// SPDX-License-Identifier: Apache-2.0
// Which rank holds the others up? Ranks of a ring wait for one another, so that all their steps
// take as long as the slowest one's, and only the time that a rank spends computing (its step less
// what it waited for peers) tells them apart. It is summed over windows of kWindowUs of steps and
// kWindowSteps, and a rank is a straggler once it exceeds the median of the ranks by more than
// kOutlier (outliers.h) in kWindows windows in a row, one no longer once it has stayed below
// kCleared as often. Why neither noise nor uneven work shows:
//   - what disturbs a rank for less than a window's 15 % (300 ms) is lost in it, what disturbs it
//     for less than kWindows of them ends before it is named; between kOutlier and kCleared
//     nothing changes, so that a rank at the edge does not flicker;
//   - a rank whose share of a window was larger, in rows computed (a row through the head counts as
//     one through the layers, which costs more) or in tokens whose KV it holds, may have taken
//     longer in that proportion before the 15 % count; the larger of the two excuses it.
// PURE: the engine sums, this decides. On GPUs ranks do not report what they waited, all compute
// times are equal, and nobody is named.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace annulus::server {

inline constexpr double kWindowUs = 2e6;     // of steps, the slowest rank's
inline constexpr int64_t kWindowSteps = 16;  // so that the turns of decode owners even out
inline constexpr int32_t kWindows = 5;
inline constexpr double kCleared = 0.10;

// What one rank did in one window.
struct RankWindow {
  double compute_us = 0;
  int64_t rows = 0, logit_rows = 0;
  int64_t kv_rows = 0;  // held at its end
};

// Compute time of each rank over the median's, less one, as far as its work does not explain it;
// by rank. 0 where a figure is no number.
std::vector<double> excess(std::span<const RankWindow> ranks);

struct StragglerChange {
  int32_t rank = 0;
  bool straggles = false;  // from now on, or no longer
};

// Of the ranks of one epoch.
class Stragglers {
 public:
  explicit Stragglers(size_t ranks) : ranks_(ranks) {}

  // The next window, by rank; what has changed.
  std::vector<StragglerChange> window(std::span<const RankWindow> ranks);
  // How far beyond the median a rank was in the last window; whether it is a straggler.
  double excess_of(size_t rank) const { return ranks_.at(rank).excess; }
  bool straggles(size_t rank) const { return ranks_.at(rank).straggles; }

 private:
  struct Rank {
    double excess = 0;
    int32_t in_a_row = 0;  // windows that speak for a change
    bool straggles = false;
  };
  std::vector<Rank> ranks_;
};

}  // namespace annulus::server
