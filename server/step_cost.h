// SPDX-License-Identifier: Apache-2.0
// What a step is predicted to cost, and from it how long the next chunk of a prompt may be. PURE:
// the epoch's frozen profile and the items in, microseconds and positions out. Caller: scheduler.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "parallel/ring_policy.h"

namespace annulus::server {

// Groups of a step whose items may each be forced to a variant; at most one group per variant,
// highest miss rate first.
std::vector<parallel::Group> group_items(const parallel::PolicyInput& policy,
                                         std::span<const parallel::Load> loads,
                                         std::span<const std::optional<parallel::Variant>> forced);

// Rows of all layers plus attention of the groups.
double step_us(const parallel::PolicyInput& policy, std::span<const parallel::Load> loads,
               std::span<const parallel::Group> groups);
// One item on its own.
double item_us(const parallel::PolicyInput& policy, const parallel::Load& load,
               std::optional<parallel::Variant> forced);

struct ChunkLimits {
  double budget_us = 0;  // what the chunk may cost
  int32_t fixed = 0;     // > 0: this chunk size, whatever it costs
  bool must = false;  // the step's first chunk: take the smallest one though it exceeds the budget
  std::optional<parallel::Variant> forced;
  int64_t most = int64_t{1} << 30;  // tokens, where the chunk is not fixed; at least 2 * cp
};

// End of the chunk that begins at `first` in a prompt that ends at `end`: `end` or an absolute
// multiple of the chunk size (fixed, or a multiple of 2 * cp, so that whole chunks are evenly
// spread). `first` when the budget allows none.
int64_t chunk_end(const parallel::PolicyInput& policy, int64_t first, int64_t end,
                  const ChunkLimits& limits);

}  // namespace annulus::server
