// SPDX-License-Identifier: Apache-2.0
#include "server/step_cost.h"

#include <gtest/gtest.h>

#include "kernels/core/math.h"
#include "tests/server/scheduler/fake_ranks.h"

namespace annulus::server {
namespace {

using annulus::testing::test_policy;
using parallel::Load;
using parallel::Variant;

TEST(StepCost, ForcedItemsJoinTheirGroup) {
  const parallel::PolicyInput policy = test_policy(3);
  const std::vector<Load> loads = {{100, 0}, {1, 500}, {50, 900}, {1, 10}};
  const std::vector<std::optional<Variant>> forced = {Variant::kPassQ, Variant::kPassKv,
                                                      std::nullopt, Variant::kPassQ};
  const std::vector<parallel::Group> groups = group_items(policy, loads, forced);
  std::vector<int> seen(loads.size(), 0);
  for (const parallel::Group& group : groups) {
    for (int32_t i : group.items) {
      ++seen[static_cast<size_t>(i)];
      if (forced[static_cast<size_t>(i)]) {
        EXPECT_EQ(group.variant, *forced[static_cast<size_t>(i)]);
      }
    }
  }
  EXPECT_EQ(seen, std::vector<int>(loads.size(), 1));
  EXPECT_GT(step_us(policy, loads, groups), 0);
}

TEST(StepCost, FixedChunksEndAtAbsoluteMultiples) {
  const parallel::PolicyInput policy = test_policy(2);
  const ChunkLimits limits{.budget_us = 1e9, .fixed = 100, .must = false, .forced = {}};
  EXPECT_EQ(chunk_end(policy, 0, 1000, limits), 100);
  EXPECT_EQ(chunk_end(policy, 130, 1000, limits), 200);
  EXPECT_EQ(chunk_end(policy, 930, 950, limits), 950);
  const ChunkLimits poor{.budget_us = 1, .fixed = 100, .must = false, .forced = {}};
  EXPECT_EQ(chunk_end(policy, 130, 1000, poor), 130);
  const ChunkLimits must{.budget_us = 1, .fixed = 100, .must = true, .forced = {}};
  EXPECT_EQ(chunk_end(policy, 130, 1000, must), 200);
}

// The largest affordable chunk, at multiples of 2 * cp; everything when it is affordable; progress
// even when nothing is.
TEST(StepCost, AutomaticChunksFillTheBudget) {
  for (int32_t cp = 1; cp <= 4; ++cp) {
    const parallel::PolicyInput policy = test_policy(cp);
    for (int64_t first : {0, 7, 1000, 60000}) {
      const int64_t end = first + 50000;
      for (double budget : {1e3, 1e5, 5e5}) {
        const ChunkLimits limits{.budget_us = budget, .fixed = 0, .must = true, .forced = {}};
        const int64_t to = chunk_end(policy, first, end, limits);
        ASSERT_GT(to, first);
        EXPECT_EQ(to % (2 * cp), 0);
        const double cost = item_us(policy, {to - first, first}, {});
        const int64_t least = kernels::ceil_div(64, 2 * cp) * 2 * cp;  // made whatever it costs
        if (to - first > least) {
          EXPECT_LE(cost, budget);
        }
        ChunkLimits optional = limits;
        optional.must = false;
        const int64_t maybe = chunk_end(policy, first, end, optional);
        EXPECT_TRUE(maybe == first || maybe == to);
        if (maybe == first) {
          EXPECT_GT(cost, budget);
        }
      }
      const ChunkLimits rich{.budget_us = 1e12, .fixed = 0, .must = false, .forced = {}};
      EXPECT_EQ(chunk_end(policy, first, end, rich), end);
    }
  }
}

// A link on which no chunk hides its hops must not break the time limit.
TEST(StepCost, SlowLinkStaysWithinTheBudget) {
  parallel::PolicyInput policy = test_policy(2);
  policy.profile.link_bytes_per_us = 1;
  const ChunkLimits limits{.budget_us = 5e6, .fixed = 0, .must = true, .forced = Variant::kPassKv};
  const int64_t to = chunk_end(policy, 0, 100000, limits);
  EXPECT_GT(to, 0);
  EXPECT_LE(item_us(policy, {to, 0}, Variant::kPassKv), 5e6);
}

}  // namespace
}  // namespace annulus::server
