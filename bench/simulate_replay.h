// SPDX-License-Identifier: Apache-2.0
// Virtual time: the traces of all CP ranks of one step, run against each other. A rank's clock
// moves by its own work; a message starts when both its ends have come and is in flight from then
// on; a collective starts when the last rank has come. No other state, so a layer is a function of
// the clocks that shifts with them (max and plus): once a repeated layer has moved every rank by
// one and the same time it will for ever, and the rest is multiplied. Exact but for rounding. PURE.
// CHECKs that all calls meet.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "bench/simulate_trace.h"
#include "kernels/core/timeline.h"

namespace annulus::bench {

struct StepTimes {
  double us = 0;                // the slowest rank
  std::vector<double> rank_us;  // by CP rank
  Shares mean{};                // of the ranks, kWait too
  double transfer_us = 0;       // mean of a rank: all hops, each as if nothing ran beside it
  double visits = 0;            // mean of a rank
  double bytes_sent = 0;        // the largest rank's
  int32_t layers_run = 0;       // the rest had become periodic
};

// What each rank did when, from the step's start; its transfers too. The head is in the last layer.
using RankIntervals = std::vector<std::vector<kernels::Interval>>;

// intervals: by CP rank, appended to; every layer is replayed then. Null: none.
StepTimes replay(std::span<const RankTrace> ranks, RankIntervals* intervals = nullptr);

}  // namespace annulus::bench
