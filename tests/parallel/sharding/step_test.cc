// SPDX-License-Identifier: Apache-2.0
#include "parallel/step.h"

#include <gtest/gtest.h>

#include "parallel/topology.h"

namespace annulus::parallel {
namespace {

TEST(Step, VariantNamesParseBack) {
  for (int32_t v = 0; v < kVariants; ++v) {
    const auto variant = static_cast<Variant>(v);
    const auto parsed = parse_variant(name(variant));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, variant);
  }
  for (const char* bad : {"", "auto", "pass_kv", "pass-kv ", "PASS-KV"}) {
    const auto parsed = parse_variant(bad);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find("pass-q"), std::string::npos) << parsed.status();
  }
}

TEST(Step, SampledRowsFollowItemsThenPositions) {
  StepPlan plan;
  plan.items.resize(3);
  plan.items[0].wanted = {{5, true, -1, 0}, {6, false, 3, 0}, {7, true, -1, 0, true}};
  plan.items[1].wanted = {{1, false, -1, 5}};
  plan.items[2].wanted = {{0, true, -1, 0}};
  const std::vector<std::pair<int32_t, int64_t>> expected = {{0, 5}, {0, 7}, {2, 0}};
  EXPECT_EQ(sampled_rows(plan), expected);
}

TEST(Step, SpanAndItemCounts) {
  EXPECT_EQ((Span{3, 4, 5}.last()), 18);
  Item item;
  item.spans = {{0, 2000000000, 1}, {2000000000, 2000000000, 1}};
  EXPECT_EQ(item.count(), 4000000000);
}

TEST(Topology, RanksMapBothWays) {
  constexpr Topology topology{3, 4};
  static_assert(topology.world() == 12);
  for (int32_t r = 0; r < topology.world(); ++r) {
    EXPECT_EQ(topology.world_rank(topology.tp_rank(r), topology.cp_rank(r)), r);
  }
  EXPECT_EQ(topology.world_rank(2, 1), 5);
}

}  // namespace
}  // namespace annulus::parallel
