// SPDX-License-Identifier: Apache-2.0
#include "parallel/decode_key.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "tests/parallel/decode_script.h"

namespace annulus::parallel {
namespace {

constexpr int32_t kCp = 4;

// By step, of one rank, which sees its own cut of every plan.
std::vector<uint64_t> keys_of(int32_t rank, Variant variant) {
  PolicyInput policy;
  policy.shape = {4, 2, 8, 2, kernels::DType::kF32};
  policy.cp = kCp;
  policy.workspace_limit_bytes = 1 << 20;
  ShardState state = testing::state_of(kCp);
  PositionLists lists;
  std::vector<uint64_t> out;
  for (const StepPlan& whole : decode_script(kCp, variant)) {
    ShardState before = state;
    apply_ops(before, whole);
    const StepPlan plan = plan_for_rank(before, whole, rank);
    for (const Op& op : plan.ops) lists.apply(op);
    state = advance(std::move(state), plan);
    out.push_back(decode_key(plan, layout_groups(state, plan, rank, policy, lists)));
  }
  return out;
}

TEST(DecodeKey, RanksSeeEqualKeysInEqualSteps) {
  for (const Variant variant : {Variant::kPassKv, Variant::kPassQ, Variant::kGatherQ}) {
    const std::vector<uint64_t> first = keys_of(0, variant);
    for (int32_t rank = 1; rank < kCp; ++rank) EXPECT_EQ(keys_of(rank, variant), first);
  }
}

// Two batches, whose owners go round; whatever the contexts' lengths.
TEST(DecodeKey, ComesAgainWithTheOwners) {
  const std::vector<uint64_t> keys = keys_of(1, Variant::kGatherQ);
  EXPECT_EQ(keys[0], 0u) << "a prompt";
  const std::set<uint64_t> together(keys.begin() + 1, keys.begin() + 1 + kTogether);
  const std::set<uint64_t> alone(keys.begin() + 1 + kTogether, keys.end());
  EXPECT_EQ(together.size(), size_t{kCp});
  EXPECT_EQ(alone.size(), size_t{kCp});
  EXPECT_EQ(std::set<uint64_t>(keys.begin(), keys.end()).size(), size_t{2 * kCp + 1});
  for (size_t step = 1; step + kCp <= kTogether; ++step) EXPECT_EQ(keys[step], keys[step + kCp]);
}

TEST(DecodeKey, IsNoneWherePayloadsGrow) {
  for (const uint64_t key : keys_of(2, Variant::kPassKv)) EXPECT_EQ(key, 0u);
}

TEST(DecodeKey, KnowsWhatIsWanted) {
  const StepPlan plan = decode_script(kCp, Variant::kGatherQ)[1];
  const std::vector<GroupLayout> none;
  std::set<uint64_t> keys = {decode_key(plan, none)};
  const auto with = [&](const auto& change) {
    StepPlan other = plan;
    change(other.items[1].wanted[0]);
    keys.insert(decode_key(other, none));
  };
  with([](Wanted& w) { w.sample = false; });
  with([](Wanted& w) { w.target = -1; });
  with([](Wanted& w) { w.logprob = true; });
  with([](Wanted& w) { w.top = 3; });
  EXPECT_EQ(keys.size(), 5u);
  with([](Wanted& w) { w.target = 9; });
  EXPECT_EQ(keys.size(), 5u) << "which id is data";
}

}  // namespace
}  // namespace annulus::parallel
