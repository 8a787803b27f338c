// SPDX-License-Identifier: Apache-2.0
// When a worker begins steps, and when it answers, on a rank whose steps end as they are told to.
#include "server/app/step_pipeline.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/check.h"

namespace annulus::server {
namespace {

using parallel::StepPlan;
using parallel::StepResult;
using Clock = std::chrono::steady_clock;

// Tells what it is asked to do; `while_it_runs` happens in every wait, until which no step ends.
struct ToldRank final : parallel::Rank {
  explicit ToldRank(std::vector<std::string>& into, int32_t most) : log(into), most_steps(most) {}

  parallel::MachineProfile measure() override { return {}; }
  absl::Status begin(const StepPlan& plan, Clock::time_point, const Told& told) override {
    ANNULUS_CHECK(begun() < most_steps, begun());
    if (refuses == plan.step) return absl::InvalidArgumentError("no");
    log.push_back("begin " + std::to_string(plan.step));
    if (ends_meanwhile == plan.step) told(end());
    steps.push_back(plan.step);
    return absl::OkStatus();
  }
  bool wait(const std::function<bool()>& woken) override {
    log.push_back("wait " + std::to_string(steps.front()));
    if (while_it_runs) while_it_runs();
    return !woken();
  }
  StepResult end() override {
    StepResult result;
    result.step = steps.front();
    steps.erase(steps.begin());
    return result;
  }
  int32_t begun() const override { return static_cast<int32_t>(steps.size()); }
  int32_t most_begun() const override { return most_steps; }
  Breadcrumb breadcrumb() const override { return {}; }
  int64_t kv_capacity_rows() const override { return 0; }
  const parallel::ShardState& state() const override { return nothing; }

  std::vector<std::string>& log;
  const int32_t most_steps;
  std::function<void()> while_it_runs;
  int64_t refuses = -1, ends_meanwhile = -1;
  std::vector<int64_t> steps;
  parallel::ShardState nothing;
};

using Log = std::vector<std::string>;

class StepPipelineTest : public ::testing::Test {
 protected:
  // The loop of a worker, until the inbox is closed.
  void work(ToldRank& rank) {
    for (;;) {
      steps_.run(rank);
      const auto message = inbox_.pop();
      if (!message) return;
      StepPlan plan;
      plan.step = message->plan().epoch();  // all that a plan is here
      if (!steps_.begin(rank, plan, std::chrono::seconds(1)).ok()) log_.push_back("refused");
    }
  }
  void arrives(int64_t step) {
    v1::FrontMessage message;
    message.mutable_plan()->set_epoch(step);
    inbox_.push(std::move(message));
  }

  Log log_;
  Inbox inbox_;
  std::vector<StepResult> sent_;
  StepPipeline steps_{inbox_, [this](StepResult result) {
                        log_.push_back("send " + std::to_string(result.step));
                        sent_.push_back(std::move(result));
                        if (result.step == last_) inbox_.close();
                      }};
  int64_t last_ = 3;
};

TEST_F(StepPipelineTest, APlanThatIsHereIsBegunBeforeItsPredecessorEnds) {
  ToldRank rank(log_, 2);
  for (int64_t step = 1; step <= 3; ++step) arrives(step);
  work(rank);
  EXPECT_EQ(log_, (Log{"begin 1", "begin 2", "wait 1", "send 1", "begin 3", "wait 2", "send 2",
                       "wait 3", "send 3"}));
  EXPECT_EQ(sent_[0].plans_waiting, 2);  // one is under way
  EXPECT_EQ(sent_[1].idle_us, 0);
  EXPECT_EQ(sent_[2].idle_us, 0);
}

TEST_F(StepPipelineTest, APlanThatComesWhileAStepRunsIsBegunThen) {
  ToldRank rank(log_, 2);
  rank.while_it_runs = [this, next = 2]() mutable {
    if (next <= 3) arrives(next++);
  };
  arrives(1);
  work(rank);
  EXPECT_EQ(log_, (Log{"begin 1", "wait 1", "begin 2", "wait 1", "send 1", "begin 3", "wait 2",
                       "send 2", "wait 3", "send 3"}));
}

TEST_F(StepPipelineTest, AResultDoesNotWaitForTheNextPlan) {
  ToldRank rank(log_, 2);
  last_ = 1;
  arrives(1);
  work(rank);
  EXPECT_EQ(log_, (Log{"begin 1", "wait 1", "send 1"}));
}

TEST_F(StepPipelineTest, AResultDoesNotWaitForTheNextStepToBeEnqueued) {
  ToldRank rank(log_, 2);
  rank.ends_meanwhile = 2;
  last_ = 2;
  arrives(1);
  arrives(2);
  work(rank);
  EXPECT_EQ(log_, (Log{"begin 1", "begin 2", "send 1", "wait 2", "send 2"}));
  EXPECT_EQ(sent_[0].plans_waiting, 1);
}

TEST_F(StepPipelineTest, ARankOnACpuGetsOneStepAtATime) {
  ToldRank rank(log_, 1);
  for (int64_t step = 1; step <= 3; ++step) arrives(step);
  work(rank);
  EXPECT_EQ(log_, (Log{"begin 1", "wait 1", "send 1", "begin 2", "wait 2", "send 2", "begin 3",
                       "wait 3", "send 3"}));
  EXPECT_EQ(sent_[0].plans_waiting, 2);
  EXPECT_GT(sent_[1].idle_us, 0);
}

TEST_F(StepPipelineTest, ARefusedPlanBehindAStepUnderWayIsNoStep) {
  ToldRank rank(log_, 2);
  rank.refuses = 2;
  last_ = 1;
  arrives(1);
  arrives(2);
  work(rank);
  EXPECT_EQ(log_, (Log{"begin 1", "refused", "wait 1", "send 1"}));
  EXPECT_TRUE(steps_.empty());
}

}  // namespace
}  // namespace annulus::server
