// SPDX-License-Identifier: Apache-2.0
// Attention of every variant of a step, measured one after the other, again and again, on the same
// cached tokens; and what may be said of such samples. For policy and regret.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/rank_group.h"
#include "bench/statistics.h"
#include "server/profile_learner.h"

namespace annulus::bench {

struct VariantTimes {
  std::vector<double> us[parallel::kVariants];  // slowest rank, all layers, a sample a repeat
  std::vector<server::GroupTimes> parts[parallel::kVariants];  // of the rank that computed longest
  int64_t bytes[parallel::kVariants] = {};                     // sent, largest rank
};

// A step of `fresh` tokens behind `cached` ones, in a slot of its own, which is released. What a
// repeat adds is truncated away before the next; the first repeat warms up and is not counted.
absl::StatusOr<VariantTimes> measure_variants(RankGroup& group, int32_t slot, int32_t cached,
                                              int32_t fresh, int repeats);

}  // namespace annulus::bench
