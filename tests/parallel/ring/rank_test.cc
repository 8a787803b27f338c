// SPDX-License-Identifier: Apache-2.0
// Plans that cannot be: apply() refuses each in one line and has changed nothing, so that the plan
// that should have come still gives what it gives on a rank that saw nothing else.
#include "parallel/rank.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/queue.h"
#include "parallel/comm_threads.h"
#include "parallel/model/checkpoint.h"
#include "tests/parallel/sharding/plans.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using testing::admit;
using testing::item_of;
using testing::plan_of;

constexpr int64_t kCapacity = 128;

class RankPlans : public ::testing::Test {
 protected:
  RankPlans() {
    const std::string path = annulus::testing::scratch_directory() + "/tiny.gguf";
    annulus::testing::write_gguf({}, path);
    checkpoint_ = Checkpoint::open(path).value();
    kernels::CpuQueue loader(1);
    weights_ = std::make_shared<const LlamaWeights<kernels::CpuQueue>>(
        load_weights(loader, *checkpoint_, 0, 1, kernels::Precision::kF32).value());
    rank_ = make(world_);
  }

  std::unique_ptr<Rank> make(ThreadWorld& world) {
    RankOptions options;
    options.precision = kernels::Precision::kF32;
    options.kv_capacity_rows = kCapacity;
    return Rank::create(checkpoint_->config(), weights_, std::make_unique<kernels::CpuQueue>(1),
                        world.groups(0), {}, 0, 1, options)
        .value();
  }

  static absl::StatusOr<StepResult> apply(Rank& rank, const StepPlan& plan) {
    return rank.apply(plan, std::chrono::steady_clock::now() + std::chrono::minutes(1));
  }
  void expect_refused(const StepPlan& plan, const std::string& word) {
    const absl::StatusOr<StepResult> result = apply(*rank_, plan);
    ASSERT_FALSE(result.ok()) << word;
    EXPECT_NE(std::string(result.status().message()).find(word), std::string::npos)
        << result.status();
  }

  // Admits slot 1 with five tokens and samples one; then goes on from it.
  static StepPlan first() {
    Item item = item_of(1, 0, 5);
    item.wanted = {{4, true, -1, 0}};
    StepPlan plan = plan_of(testing::state_of(1), {admit(1)}, {item});
    plan.epoch = 1;
    return plan;
  }
  static StepPlan second(int64_t step, int32_t row) {
    const ShardState state = advance(testing::state_of(1), first());
    Item item;
    item.slot = 1;
    item.placement = Placement::kDecode;
    item.spans = {{5, 1, 1}};
    item.sampled = {step, row};
    item.wanted = {{5, true, -1, 0}};
    StepPlan plan = plan_of(state, {}, {item});
    plan.epoch = 1;
    plan.step = 101;
    return plan;
  }
  static int32_t sampled(const absl::StatusOr<StepResult>& result) {
    return result.value().wanted.at(0).token;
  }

  absl::StatusOr<Checkpoint> checkpoint_ = absl::UnknownError("not open yet");
  std::shared_ptr<const LlamaWeights<kernels::CpuQueue>> weights_;
  ThreadWorld world_{Topology{}}, other_world_{Topology{}};
  std::unique_ptr<Rank> rank_;
};

TEST_F(RankPlans, ImpossibleOnesAreRefusedAndLeaveNothing) {
  StepPlan plan = first();
  plan.epoch = 2;
  expect_refused(plan, "a plan of epoch 2 in epoch 1");
  plan = first();
  plan.digest ^= 1;
  expect_refused(plan, "the plan follows state");
  for (const int32_t id : {288, std::numeric_limits<int32_t>::max()}) {
    plan = first();
    plan.items[0].tokens[3] = id;
    expect_refused(plan, "token id");
    plan = first();
    plan.items[0].wanted[0].target = id;
    expect_refused(plan, "target");
  }
  plan = first();
  plan.items[0].tokens[0] = -1;
  expect_refused(plan, "negative");

  const std::unique_ptr<Rank> fresh = make(other_world_);
  EXPECT_EQ(sampled(apply(*rank_, first())), sampled(apply(*fresh, first())));
  expect_refused(second(99, 0), "no ids sampled in step 99");
  expect_refused(second(100, 1), "row 1 of the 1 sampled in step 100");
  EXPECT_EQ(sampled(apply(*rank_, second(100, 0))), sampled(apply(*fresh, second(100, 0))));
}

TEST_F(RankPlans, MoreThanTheKvCacheHoldsEndsTheEpochNotTheProcess) {
  StepPlan plan = plan_of(testing::state_of(1), {admit(1)}, {item_of(1, 0, 200)});
  plan.epoch = 1;
  EXPECT_THROW(static_cast<void>(apply(*rank_, plan)), kernels::DeviceError);
}

}  // namespace
}  // namespace annulus::parallel
