// SPDX-License-Identifier: Apache-2.0
// Each rule of validate() broken alone: refused, with a line that names the place.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "plans.h"

namespace annulus::parallel {
namespace {

using testing::admit;
using testing::item_of;
using testing::op_of;
using testing::plan_of;
using testing::state_of;

// Slot 0 holds 10 positions, slot 1 holds 4. The plan goes on with 0, decodes in 1, begins 2.
struct Fixture {
  ShardState state = state_of(3);
  StepPlan plan;

  Fixture() {
    state = advance(state,
                    plan_of(state, {admit(0), admit(1, 1)}, {item_of(0, 0, 10), item_of(1, 0, 4)}));
    plan = plan_of(state, {admit(2, 2)},
                   {item_of(0, 10, 8), item_of(1, 4, 1, Placement::kDecode), item_of(2, 0, 5)});
    plan.items[1].tokens.clear();
    plan.items[1].sampled = {99, 1};
    plan.items[0].wanted = {{12, false, 3, 0}, {17, true, -1, kMaxTop}};
    plan.groups = {{Variant::kPassKv, {0, 2}}, {Variant::kGatherQ, {1}}};
  }
};

TEST(Validate, AcceptsAWholePlan) {
  const Fixture f;
  EXPECT_TRUE(validate(f.state, f.plan).ok()) << validate(f.state, f.plan);
  EXPECT_TRUE(validate(f.state, plan_of(f.state, {}, {})).ok());
}

struct Broken {
  const char* message;
  std::function<void(StepPlan&)> damage;
};

TEST(Validate, RefusesEachBrokenRule) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t huge = std::numeric_limits<int64_t>::max();
  const std::vector<Broken> rules = {
      {"epoch -1 is negative", [](StepPlan& p) { p.epoch = -1; }},
      {"step -1 is negative", [](StepPlan& p) { p.step = -1; }},
      {"layout -1 is not in the epoch's table", [](StepPlan& p) { p.layout_id = -1; }},
      {"layout 1 is not in the epoch's table", [](StepPlan& p) { p.layout_id = 1; }},
      {"op 0: slot 0 is taken", [](StepPlan& p) { p.ops[0].slot = 0; }},
      {"op 0: slot -2 is negative", [](StepPlan& p) { p.ops[0].slot = -2; }},
      {"op 0: decode_base is 3, must be in [0, 3)", [](StepPlan& p) { p.ops[0].decode_base = 3; }},
      {"op 0: decode_base is -1, must be in [0, 3)",
       [](StepPlan& p) { p.ops[0].decode_base = -1; }},
      {"op 0: temperature is -1, must be at least 0",
       [](StepPlan& p) { p.ops[0].sampling.temperature = -1; }},
      {"op 0: temperature is nan", [=](StepPlan& p) { p.ops[0].sampling.temperature = nan; }},
      {"op 0: top_k is -1, must be at least 0", [](StepPlan& p) { p.ops[0].sampling.top_k = -1; }},
      {"op 0: top_p is 0, must be in (0, 1]", [](StepPlan& p) { p.ops[0].sampling.top_p = 0; }},
      {"op 0: top_p is nan", [=](StepPlan& p) { p.ops[0].sampling.top_p = nan; }},
      {"op 0: min_p is 2, must be in [0, 1]", [](StepPlan& p) { p.ops[0].sampling.min_p = 2; }},
      {"op 1: slot 9 does not exist",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kSampling, 9)); }},
      {"op 1: slot 9 does not exist",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kRelease, 9)); }},
      {"op 1: slot 9 does not exist",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kTruncate, 9)); }},
      {"op 1: length is 11, the slot has 10",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kTruncate, 0, 11)); }},
      {"op 1: length is -1, the slot has 10",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kTruncate, 0, -1)); }},
      {"op 1: slot 8 does not exist",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kFork, 3, 1, 8)); }},
      {"op 1: slot 0 is taken",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kFork, 0, 1, 0)); }},
      {"op 1: length is 5, the slot has 4",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kFork, 3, 5, 1)); }},
      {"op 1: decode_base is 7", [](StepPlan& p) { p.ops.push_back(testing::rebase(0, 7)); }},
      {"op 0: unknown kind 77",
       [](StepPlan& p) {
         p.ops[0].kind = static_cast<Op::Kind>(77);
         p.ops[0].slot = 0;
       }},
      {"item 0: slot 0 does not exist",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kRelease, 0)); }},
      {"item 0: a span begins at position 10, slot 0 ends at 6",
       [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kTruncate, 0, 6)); }},
      {"item 1: slot 0 is also that of item 0", [](StepPlan& p) { p.items[1].slot = 0; }},
      {"item 0: unknown placement 5",
       [](StepPlan& p) { p.items[0].placement = static_cast<Placement>(5); }},
      {"item 0: no spans", [](StepPlan& p) { p.items[0].spans.clear(); }},
      {"item 0: a span counts 0", [](StepPlan& p) { p.items[0].spans[0].count = 0; }},
      {"item 0: a span counts -3", [](StepPlan& p) { p.items[0].spans[0].count = -3; }},
      {"item 0: a span has stride 2, plans have 1",
       [](StepPlan& p) { p.items[0].spans[0].stride = 2; }},
      {"item 0: a span begins at position 9, slot 0 ends at 10",
       [](StepPlan& p) { p.items[0].spans[0].first = 9; }},
      {"item 0: a span begins at position 9223372036854775807",
       [=](StepPlan& p) { p.items[0].spans[0].first = huge; }},
      {"item 0: a span begins at position 13, slot 0 ends at 12",
       [](StepPlan& p) {
         p.items[0].spans = {{10, 2, 1}, {13, 5, 1}};
       }},
      {"item 0: position 2147483656 is too large",
       [](StepPlan& p) { p.items[0].spans[0].count = INT32_MAX; }},
      {"item 0: 7 tokens, 8 expected", [](StepPlan& p) { p.items[0].tokens.pop_back(); }},
      {"item 0: token id -4 is negative", [](StepPlan& p) { p.items[0].tokens[2] = -4; }},
      {"item 1: 1 tokens, 0 expected", [](StepPlan& p) { p.items[1].tokens = {5}; }},
      {"item 1: its token is sampled in step 100, this is step 100",
       [](StepPlan& p) { p.items[1].sampled.step = 100; }},
      {"item 1: its token is sampled in step -7",
       [](StepPlan& p) { p.items[1].sampled.step = -7; }},
      {"item 1: its token is sampled in row -1", [](StepPlan& p) { p.items[1].sampled.row = -1; }},
      {"item 1: one sampled token for 2 positions",
       [](StepPlan& p) { p.items[1].spans[0].count = 2; }},
      {"item 0: wanted position 18 is not in [10, 17]",
       [](StepPlan& p) { p.items[0].wanted[1].position = 18; }},
      {"item 0: wanted position 9 is not in [10, 17]",
       [](StepPlan& p) { p.items[0].wanted[0].position = 9; }},
      {"item 0: wanted position 12 after 12",
       [](StepPlan& p) { p.items[0].wanted[1].position = 12; }},
      {"item 0: wanted target -2 is negative",
       [](StepPlan& p) { p.items[0].wanted[0].target = -2; }},
      {"item 0: wanted top 129 is not in [0, 128]",
       [](StepPlan& p) { p.items[0].wanted[0].top = 129; }},
      {"group with unknown variant 9",
       [](StepPlan& p) { p.groups[0].variant = static_cast<Variant>(9); }},
      {"two groups of gather-q", [](StepPlan& p) { p.groups[0].variant = Variant::kGatherQ; }},
      {"the group of pass-q is empty",
       [](StepPlan& p) {
         p.groups.push_back({Variant::kPassQ, {}});
       }},
      {"the group of gather-q names item 3 of 3", [](StepPlan& p) { p.groups[1].items[0] = 3; }},
      {"the group of gather-q names item -1 of 3", [](StepPlan& p) { p.groups[1].items[0] = -1; }},
      {"item 0 is in two groups",
       [](StepPlan& p) {
         p.groups[1].items = {1, 0};
       }},
      {"item 2 is in no group", [](StepPlan& p) { p.groups[0].items = {0}; }},
  };
  const Fixture f;
  for (const Broken& rule : rules) {
    StepPlan plan = f.plan;
    rule.damage(plan);
    const absl::Status status = validate(f.state, plan);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << rule.message;
    EXPECT_EQ(status.message().substr(0, std::string(rule.message).size()), rule.message);
  }
}

TEST(Validate, DriftIsToldApart) {
  const Fixture f;
  StepPlan plan = f.plan;
  ++plan.digest;
  EXPECT_EQ(validate(f.state, plan).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Validate, ARankWantsItsOwnTokens) {
  const Fixture f;
  ShardState ready = f.state;
  apply_ops(ready, f.plan);
  const StepPlan cut = plan_for_rank(ready, f.plan, 1);
  EXPECT_TRUE(validate(f.state, cut, 1).ok()) << validate(f.state, cut, 1);
  EXPECT_FALSE(validate(f.state, cut).ok());
  StepPlan less = cut;
  less.items[0].tokens.pop_back();
  EXPECT_FALSE(validate(f.state, less, 1).ok());
}

TEST(Validate, LastPositionIsBelowThePadding) {
  ShardState state = state_of(2);
  state = advance(state, plan_of(state, {admit(0)}, {}));
  StepPlan plan = plan_of(state, {}, {item_of(0, 0, 1)});
  plan.items[0].spans[0].count = INT32_MAX;  // positions up to INT32_MAX - 1
  EXPECT_EQ(validate(state, plan).message(), "item 0: 1 tokens, 2147483647 expected");
  state.slots.at(0).length = 1;
  plan.items[0].spans[0].first = 1;
  EXPECT_EQ(validate(state, plan).message(), "item 0: position 2147483647 is too large");
}

}  // namespace
}  // namespace annulus::parallel
