// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/coordinator.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "server/rpc/examination_wire.h"
#include "server/rpc/profile.h"
#include "tests/server/rpc/coordinator_rig.h"

namespace annulus::server {
namespace {

TEST_F(CoordinatorTest, AnEpochStartsInOrder) {
  attach(1, 1);
  EXPECT_TRUE(coordinator_.take().messages.empty());
  EXPECT_EQ(coordinator_.status().waiting_for, "rank 0 to attach");
  EXPECT_EQ(coordinator_.status().ranks_ready, 1);
  attach(2);  // any: 0 is left
  auto effects = coordinator_.take();
  const auto first = sent(effects, 1, v1::FrontMessage::kAssignment);
  const auto second = sent(effects, 2, v1::FrontMessage::kAssignment);
  ASSERT_EQ(first.size(), 1u);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(first[0].assignment().world_rank(), 1);
  EXPECT_EQ(second[0].assignment().world_rank(), 0);
  EXPECT_EQ(first[0].assignment().epoch(), 1);
  EXPECT_EQ(first[0].assignment().precision(), "fp32");
  EXPECT_EQ(first[0].assignment().context(), 100);
  EXPECT_TRUE(first[0].assignment().cudnn_attention());
  EXPECT_TRUE(second[0].assignment().cudnn_attention());
  EXPECT_EQ(first[0].assignment().chunk_tokens(), 40);

  address(1, 1);
  EXPECT_TRUE(coordinator_.take().messages.empty());
  address(2, 1);
  effects = coordinator_.take();
  const auto peers = sent(effects, 1, v1::FrontMessage::kPeers);
  ASSERT_EQ(peers.size(), 1u);
  EXPECT_EQ(peers[0].peers().addresses(0), "address 2");  // by rank, not by arrival
  EXPECT_EQ(peers[0].peers().addresses(1), "address 1");

  ready(2, 1, 60);
  ready(1, 1, 50);
  effects = coordinator_.take();
  EXPECT_EQ(sent(effects, 1, v1::FrontMessage::kStart).size(), 1u);
  ASSERT_EQ(effects.events.size(), 1u);
  const auto& event = std::get<EpochReady>(effects.events[0]);
  EXPECT_EQ(event.epoch, 1);
  EXPECT_EQ(event.kv_capacity_rows, 50);  // the smallest
  EXPECT_EQ(event.policy.cp, 2);
  ASSERT_EQ(event.ranks.size(), 2u);
  EXPECT_EQ(event.ranks[0].pid, 1002);
}

TEST_F(CoordinatorTest, StrangersAreRefusedInOneLine) {
  const auto refused = [&](const std::function<void(v1::Register&)>& change) {
    static int64_t id = 100;
    coordinator_.attached(++id, now_);
    auto message = registration(-1, id);
    change(*message.mutable_register_());
    coordinator_.received(id, message, now_);
    const auto effects = coordinator_.take();
    EXPECT_EQ(effects.close, std::vector<int64_t>{id});
    return refusal(effects, id);
  };
  EXPECT_NE(refused([](auto& r) { r.set_build("0"); }).find("same build"), std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.set_secret("x"); }).find("secret"), std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.set_model_fingerprint(8); }).find("another model"),
            std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.set_wanted_rank(2); }).find("ranks 0 to 1"), std::string::npos);
  coordinator_.attached(99, now_);
  v1::WorkerMessage heartbeat;
  heartbeat.mutable_heartbeat();
  coordinator_.received(99, heartbeat, now_);
  EXPECT_NE(refusal(coordinator_.take(), 99).find("Register"), std::string::npos);
}

TEST_F(CoordinatorTest, WhoAsksForATakenRankIsRefusedOnceItsHolderIsHeardAgain) {
  run_epoch_one();
  attach(3, 1);
  attach(4);  // any
  EXPECT_TRUE(coordinator_.take().messages.empty()) << "the holder may be dead";
  pass(milliseconds(1000), {1, 2, 3, 4});
  EXPECT_EQ(refusal(coordinator_.take(), 3), "") << "that may have been on its way already";
  pass(milliseconds(500), {1, 2, 3, 4});
  const auto effects = coordinator_.take();
  EXPECT_EQ(refusal(effects, 3), "rank 1 is taken by rank 1 (pid 1002 on h), which is alive");
  EXPECT_EQ(refusal(effects, 4), "all 2 ranks are taken");
  EXPECT_EQ(coordinator_.status().epoch, 1);
  EXPECT_TRUE(coordinator_.status().running);
}

TEST_F(CoordinatorTest, WhoAsksForTheRankOfASilentWorkerGetsIt) {
  run_epoch_one();
  pass(milliseconds(2000), {1});
  attach(3, 1);
  pass(milliseconds(1500), {1, 3});
  auto effects = coordinator_.take();
  EXPECT_NE(loss(effects).find("no heartbeat for 3.5 s"), std::string::npos) << loss(effects);
  EXPECT_EQ(sent(effects, 3, v1::FrontMessage::kAssignment).size(), 1u);
  ASSERT_EQ(sent(effects, 2, v1::FrontMessage::kDropped).size(), 1u) << "it may wake up again";
  // The old one, awake again, on a new stream.
  coordinator_.attached(4, now_);
  coordinator_.received(4, registration(1, 1002), now_);
  pass(milliseconds(1500), {1, 3, 4});
  EXPECT_NE(refusal(coordinator_.take(), 4).find("taken by rank 1 (pid 1003"), std::string::npos);
}

TEST_F(CoordinatorTest, AWorkerOfAnyRankComesBackToItsWeights) {
  coordinator_.attached(1, now_);
  auto message = registration(-1, 1);
  message.mutable_register_()->set_last_rank(1);
  coordinator_.received(1, message, now_);
  EXPECT_EQ(coordinator_.status().waiting_for, "rank 0 to attach");
  coordinator_.attached(2, now_);
  message.mutable_register_()->set_pid(2);
  coordinator_.received(2, message, now_);  // too late: whatever is free
  EXPECT_EQ(coordinator_.status().epoch, 1);
}

TEST_F(CoordinatorTest, ItsOwnPauseCountsForNobody) {
  run_epoch_one();
  send_step(0);
  pass(milliseconds(1000), {1, 2});
  for (int i = 0; i < 3; ++i) {
    now_ += seconds(30);  // stopped
    coordinator_.tick(now_);
    pass(milliseconds(1500), {1, 2});
  }
  EXPECT_EQ(loss(coordinator_.take()), "");
  pass(milliseconds(3500), {1});  // and yet
  EXPECT_NE(loss(coordinator_.take()).find("rank 1 (pid 1002 on h) was lost: no heartbeat"),
            std::string::npos);
}

TEST_F(CoordinatorTest, AnswersThatDoNotFitThePlanAreALoss) {
  const auto sampled = [](int32_t item, int64_t position, int32_t token) {
    parallel::WantedResult result;
    result.item = item;
    result.position = position;
    result.token = token;
    return result;
  };
  const std::vector<parallel::WantedResult> good = {sampled(0, 0, 9)};
  std::vector<parallel::WantedResult> scored = {sampled(0, 1, -1)};
  scored[0].top = {{.id = 9}, {.id = 0}};
  struct Case {
    std::vector<parallel::WantedResult> wanted;
    const char* why;
  };
  std::vector<Case> cases = {
      {{}, "has 0 positions, it was asked for 1"}, {{good[0], good[0]}, "has 2 positions"},
      {{sampled(0, 1, 9)}, "lacks position 0"},    {{sampled(1, 0, 9)}, "lacks position 0"},
      {{sampled(0, 0, -1)}, "samples token -1"},   {{sampled(0, 0, 10)}, "samples token 10"}};
  cases.push_back({good, "were not asked"});
  cases.back().wanted[0].top = {{.id = 1}};
  for (const Case& bad : cases) {
    coordinator_ = EpochCoordinator(plan());
    coordinator_.start(now_);
    run_epoch_one();
    send_asking_step();
    answer_wanted(1, 0, bad.wanted);
    const std::string why = loss(coordinator_.take());
    EXPECT_NE(why.find("rank 0 (pid 1001 on h) was lost: its answer to step 0 "), std::string::npos)
        << why;
    EXPECT_NE(why.find(bad.why), std::string::npos) << why;
  }
  coordinator_ = EpochCoordinator(plan());
  coordinator_.start(now_);
  run_epoch_one();
  send_asking_step();
  answer_wanted(1, 0, good);
  answer_wanted(2, 1, scored);
  const auto effects = coordinator_.take();
  EXPECT_EQ(loss(effects), "");
  EXPECT_EQ(effects.events.size(), 2u);
}

TEST_F(CoordinatorTest, AStepThatMovesOnIsSlowNotLate) {
  run_epoch_one();
  send_step(0);  // 10 s without progress, and 2 s
  for (int64_t i = 1; i <= 20; ++i) {
    pass(milliseconds(10000), {1, 2});
    heartbeat(2, i);
  }
  EXPECT_EQ(loss(coordinator_.take()), "");
}

TEST_F(CoordinatorTest, WorkersWordsAreOneBoundedLine) {
  run_epoch_one();
  v1::WorkerMessage failure;
  failure.mutable_failure()->set_epoch(1);
  std::string what = "no\nmemory";
  for (int i = 0; i < 100000; ++i) what += "\xc3\xa4";
  failure.mutable_failure()->set_what(what);
  coordinator_.received(2, failure, now_);
  pass(milliseconds(500), {1, 2});
  const std::string why = loss(coordinator_.take());
  EXPECT_LT(why.size(), 1100u);
  EXPECT_NE(why.find("no memory"), std::string::npos) << why;
  EXPECT_EQ(why.back(), '\xa4') << "cut within a character";
}

TEST_F(CoordinatorTest, ABrokenStreamEndsTheEpochAndANewWorkerBeginsTheNext) {
  run_epoch_one();
  send_step(0);
  coordinator_.closed(2, now_);
  auto effects = coordinator_.take();
  EXPECT_NE(loss(effects).find("rank 1 (pid 1002 on h) was lost: its stream broke"),
            std::string::npos)
      << loss(effects);
  ASSERT_EQ(sent(effects, 1, v1::FrontMessage::kAbortEpoch).size(), 1u);
  answer(1, 0, 0);  // too late
  EXPECT_TRUE(coordinator_.take().events.empty());

  now_ += seconds(1);
  heartbeats();
  attach(3);
  effects = coordinator_.take();
  const auto next = sent(effects, 3, v1::FrontMessage::kAssignment);
  ASSERT_EQ(next.size(), 1u);
  EXPECT_EQ(next[0].assignment().epoch(), 2);
  EXPECT_EQ(next[0].assignment().world_rank(), 1);
  address(1, 1);  // of the epoch before: no matter
  address(3, 2);
  EXPECT_TRUE(coordinator_.take().messages.empty());
  address(1, 2);
  EXPECT_EQ(coordinator_.take().messages.size(), 2u);
}

TEST_F(CoordinatorTest, SilenceIsALossAfterThreeSeconds) {
  run_epoch_one();
  for (int i = 0; i < 5; ++i) {
    now_ += milliseconds(500);
    heartbeats();
    coordinator_.tick(now_);
  }
  EXPECT_TRUE(coordinator_.take().events.empty());
  v1::WorkerMessage message;
  message.mutable_heartbeat();
  for (int i = 0; i < 7; ++i) {  // only rank 0 goes on
    now_ += milliseconds(500);
    coordinator_.received(1, message, now_);
    coordinator_.tick(now_);
  }
  const auto effects = coordinator_.take();
  EXPECT_NE(loss(effects).find("rank 1 (pid 1002 on h) was lost: no heartbeat for 3.5 s"),
            std::string::npos)
      << loss(effects);
  EXPECT_EQ(effects.stuck_pids, std::vector<int64_t>{1002});
  EXPECT_EQ(effects.close, std::vector<int64_t>{2});
}

TEST_F(CoordinatorTest, AStepPastItsDeadlineEndsTheEpochAndNamesWhoIsLate) {
  run_epoch_one();
  send_step(0, 1e6);  // 10 x 1 s + 10 s, and 2 s for the ranks to notice themselves
  send_step(1, 1e6);
  answer(1, 0, 0);
  for (int i = 0; i < 43; ++i) {  // 21.5 s
    now_ += milliseconds(500);
    heartbeats();
    coordinator_.tick(now_);
  }
  EXPECT_EQ(loss(coordinator_.take()), "");
  answer(2, 1, 0);  // just in time: the clock of step 1 starts here
  answer(2, 1, 1);
  for (int i = 0; i < 43; ++i) {
    now_ += milliseconds(500);
    heartbeats();
    coordinator_.tick(now_);
  }
  EXPECT_EQ(loss(coordinator_.take()), "");
  pass(milliseconds(1000), {1, 2});
  const std::string why = loss(coordinator_.take());
  EXPECT_NE(why.find("step 1 passed its deadline of 20 s"), std::string::npos) << why;
  EXPECT_NE(why.find("rank 0"), std::string::npos) << why;
  EXPECT_EQ(why.find("rank 1 ("), std::string::npos) << why;
  EXPECT_NE(why.find("layer 3 hop 1"), std::string::npos) << why;
}

TEST_F(CoordinatorTest, AFailureWaitsForABetterExplanation) {
  run_epoch_one();
  v1::WorkerMessage failure;
  failure.mutable_failure()->set_epoch(1);
  failure.mutable_failure()->set_what("waited for rank 1");
  coordinator_.received(1, failure, now_);
  EXPECT_EQ(loss(coordinator_.take()), "");
  coordinator_.closed(2, now_ + milliseconds(20));
  EXPECT_NE(loss(coordinator_.take()).find("stream broke"), std::string::npos);
}

TEST_F(CoordinatorTest, AFailureAloneEndsTheEpochAndTheSameWorkersBeginTheNext) {
  run_epoch_one();
  v1::WorkerMessage failure;
  failure.mutable_failure()->set_epoch(1);
  failure.mutable_failure()->set_what("the device is gone");
  coordinator_.received(2, failure, now_);
  now_ += milliseconds(200);
  coordinator_.tick(now_);
  const auto effects = coordinator_.take();
  EXPECT_EQ(loss(effects), "rank 1 (pid 1002 on h): the device is gone");
  EXPECT_EQ(sent(effects, 1, v1::FrontMessage::kAssignment).size(), 1u);
  EXPECT_EQ(coordinator_.status().epoch, 2);
}

TEST_F(CoordinatorTest, EpochsThatKeepFailingAreSpacedOut) {
  attach(1);
  attach(2);
  int64_t started = 0;
  for (int i = 0; i < 200; ++i) {  // 10 s in which every start fails at once
    const int64_t epoch = coordinator_.status().epoch;
    v1::WorkerMessage failure;
    failure.mutable_failure()->set_epoch(epoch);
    failure.mutable_failure()->set_what("no memory");
    coordinator_.received(1, failure, now_);
    now_ += milliseconds(50);
    heartbeats();
    coordinator_.tick(now_);
    started = coordinator_.status().epoch;
  }
  EXPECT_LT(started, 9);
  EXPECT_GE(started, 4);
  EXPECT_GE(coordinator_.status().failed_starts, 3);
  EXPECT_NE(coordinator_.status().last_end.find("no memory"), std::string::npos);
}

TEST_F(CoordinatorTest, EpochsThatDidTheirWorkAreNotSpacedOut) {
  run_epoch_one();
  for (int64_t epoch = 1; epoch < 20; ++epoch) {
    parallel::StepPlan step;
    step.epoch = epoch;
    parallel::ShardState state;
    state.cp = 2;
    coordinator_.send_plan(step, state, 0, now_);
    answer(1, 0, 0, epoch);
    answer(epoch == 1 ? 2 : epoch + 10, 1, 0, epoch);
    coordinator_.closed(epoch == 1 ? 2 : epoch + 10, now_);
    attach(epoch + 11, 1);
    ASSERT_EQ(coordinator_.status().epoch, epoch + 1);
    for (const int64_t id : {int64_t{1}, epoch + 11}) address(id, epoch + 1);
    for (const int64_t id : {int64_t{1}, epoch + 11}) ready(id, epoch + 1);
  }
}

TEST_F(CoordinatorTest, PlansGoToAllAndAnswersMustBeAsked) {
  run_epoch_one();
  send_step(0, 2e6);
  auto effects = coordinator_.take();
  for (const int64_t id : {1, 2}) {
    const auto plans = sent(effects, id, v1::FrontMessage::kPlan);
    ASSERT_EQ(plans.size(), 1u);
    EXPECT_DOUBLE_EQ(plans[0].plan().deadline_s(), 30);
    EXPECT_TRUE(parallel::decode_plan(plans[0].plan().plan()).ok());
  }
  answer(1, 0, 0);
  EXPECT_EQ(coordinator_.take().events.size(), 1u);
  answer(1, 0, 0);  // again
  EXPECT_NE(loss(coordinator_.take()).find("not asked"), std::string::npos);
}

TEST_F(CoordinatorTest, AnAnswerThatDoesNotParseIsALoss) {
  run_epoch_one();
  send_step(0);
  v1::WorkerMessage message;
  message.mutable_answer()->set_epoch(1);
  message.mutable_answer()->set_result("nonsense");
  coordinator_.received(2, message, now_);
  EXPECT_NE(loss(coordinator_.take()).find("does not parse"), std::string::npos);
}

TEST_F(CoordinatorTest, AWorkerThatComesBackTakesItsOldPlace) {
  run_epoch_one();
  coordinator_.attached(5, now_);
  coordinator_.received(5, registration(1, 1002), now_);  // rank 1's process, on a new stream
  const auto effects = coordinator_.take();
  EXPECT_EQ(refusal(effects, 5), "");
  EXPECT_EQ(effects.close, std::vector<int64_t>{2});
  EXPECT_EQ(coordinator_.status().epoch, 2);
}

TEST_F(CoordinatorTest, WhoIsMissingIsToldOnce) {
  attach(1, 1);
  coordinator_.tick(now_);
  EXPECT_EQ(loss(coordinator_.take()), "waiting for rank 0 to attach");
  coordinator_.tick(now_);
  EXPECT_TRUE(coordinator_.take().events.empty());
  attach(2);
  coordinator_.tick(now_);
  EXPECT_EQ(loss(coordinator_.take()), "waiting for ranks 0, 1 to open the data plane");
  for (const int64_t id : {1, 2}) address(id, 1);
  coordinator_.tick(now_);
  EXPECT_EQ(loss(coordinator_.take()), "waiting for ranks 0, 1 to load weights");
}

// A rank whose weights come from another has no news while that one reads.
TEST_F(CoordinatorTest, WhileARankLoadsTheOthersMayWait) {
  attach(1);
  attach(2);
  for (const int64_t id : {1, 2}) address(id, 1);
  for (int i = 0; i < 3; ++i) {
    pass(seconds(50), {1, 2});
    v1::WorkerMessage message;
    message.mutable_load_progress()->set_done_bytes(i);
    coordinator_.received(1, message, now_);
  }
  EXPECT_TRUE(coordinator_.take().close.empty());
  pass(seconds(61), {1, 2});
  const auto effects = coordinator_.take();
  EXPECT_EQ(effects.close.size(), 2u);
  EXPECT_NE(loss(effects).find("no news for 60 s while epoch 1 started"), std::string::npos)
      << loss(effects);
}

TEST_F(CoordinatorTest, PeersSayWhoSendsWeightsToWhom) {
  EpochPlan sending = plan();
  sending.weights = WeightPolicy::kSend;
  sending.outline = "the outline";
  coordinator_ = EpochCoordinator(sending);
  coordinator_.start(now_);
  attach(1, 0);
  coordinator_.attached(2, now_);
  v1::WorkerMessage without_file = registration(1, 1002);
  without_file.mutable_register_()->set_model_file(v1::MODEL_FILE_NONE);
  without_file.mutable_register_()->clear_model_fingerprint();
  coordinator_.received(2, without_file, now_);
  auto effects = coordinator_.take();
  EXPECT_EQ(sent(effects, 1, v1::FrontMessage::kAssignment).at(0).assignment().outline(), "");
  EXPECT_EQ(sent(effects, 2, v1::FrontMessage::kAssignment).at(0).assignment().outline(),
            "the outline");
  for (const int64_t id : {1, 2}) address(id, 1);
  effects = coordinator_.take();
  const auto route_to = [&](int64_t id) {
    return sent(effects, id, v1::FrontMessage::kPeers).at(0).peers().weights();
  };
  EXPECT_FALSE(route_to(1).has_from());
  EXPECT_EQ(route_to(1).to(), 1);
  EXPECT_TRUE(route_to(1).table());
  EXPECT_EQ(route_to(2).from(), 0);
  EXPECT_FALSE(route_to(2).has_to());
  for (const int64_t id : {1, 2}) ready(id, 1);
  effects = coordinator_.take();
  const auto& event = std::get<EpochReady>(effects.events.at(0));
  EXPECT_EQ(event.ranks[0].weights_from, -1);
  EXPECT_EQ(event.ranks[1].weights_from, 0);

  // Whoever holds weights is sent none.
  coordinator_.closed(1, now_);
  attach(3, 0);
  effects = coordinator_.take();
  const int64_t epoch = coordinator_.status().epoch;
  v1::WorkerMessage holding;
  holding.mutable_data_address()->set_epoch(epoch);
  holding.mutable_data_address()->set_holds_weights(true);
  coordinator_.received(2, holding, now_);
  address(3, epoch);
  effects = coordinator_.take();
  EXPECT_EQ(route_to(2).to(), 0);
  EXPECT_EQ(route_to(3).from(), 1);
}

TEST_F(CoordinatorTest, AnEpochThatNobodyCanLoadEndsAndSaysWhy) {
  EpochPlan outlined = plan();
  outlined.outline = "the outline";
  coordinator_ = EpochCoordinator(outlined);
  coordinator_.start(now_);
  for (const int64_t id : {1, 2}) {
    coordinator_.attached(id, now_);
    v1::WorkerMessage without_file = registration(-1, 1000 + id);
    without_file.mutable_register_()->set_model_file(v1::MODEL_FILE_NONE);
    coordinator_.received(id, without_file, now_);
  }
  for (const int64_t id : {1, 2}) address(id, 1);
  EXPECT_NE(loss(coordinator_.take()).find("rank 0 on h has no model file"), std::string::npos);
}

TEST_F(CoordinatorTest, PlansOfAnEpochThatIsOverGoNowhere) {
  run_epoch_one();
  coordinator_.closed(2, now_);
  coordinator_.take();
  send_step(0);
  EXPECT_TRUE(coordinator_.take().messages.empty());
}

// A front end that examines its ranks: no model, no plans; the epoch is what they report.
class ExaminingCoordinatorTest : public CoordinatorTest {
 protected:
  ExaminingCoordinatorTest() {
    EpochPlan plan = CoordinatorTest::plan();
    plan.model_fingerprint = 0;
    plan.examine = true;
    coordinator_ = EpochCoordinator(plan);
    coordinator_.start(now_);
  }
  void attach_without_model(int64_t id) {
    v1::WorkerMessage message = registration(-1, 1000 + id);
    message.mutable_register_()->clear_model_fingerprint();
    coordinator_.attached(id, now_);
    coordinator_.received(id, message, now_);
  }
  void report(int64_t id, double gflops) {
    v1::WorkerMessage message;
    message.mutable_ready()->set_epoch(1);
    RankExamination examination;
    examination.figures["gemm_gflops"] = {gflops};
    *message.mutable_ready()->mutable_examination() = to_proto(examination);
    coordinator_.received(id, message, now_);
  }
};

TEST_F(ExaminingCoordinatorTest, ReportsCountOnceAllAreThere) {
  for (const int64_t id : {1, 2}) attach_without_model(id);
  for (const auto& outgoing : coordinator_.take().messages) {
    EXPECT_TRUE(outgoing.message.assignment().examine());
  }
  for (const int64_t id : {1, 2}) address(id, 1);
  v1::WorkerMessage progress;
  progress.mutable_examination_progress()->set_done(3);
  progress.mutable_examination_progress()->set_total(12);
  coordinator_.received(1, progress, now_);
  EXPECT_EQ(coordinator_.status().examined, 0);  // of the last one
  coordinator_.received(2, progress, now_);
  EXPECT_EQ(coordinator_.status().examined, 0.25);
  EXPECT_EQ(coordinator_.status().waiting_for, "ranks 0, 1 to measure");
  report(1, 10);
  EXPECT_FALSE(coordinator_.take().examined.has_value());
  report(2, 20);
  const auto examined = coordinator_.take().examined;
  ASSERT_TRUE(examined.has_value());
  ASSERT_EQ(examined->examinations.size(), 2u);
  EXPECT_EQ(figure_of(examined->examinations[1], "gemm_gflops"), 20);
  EXPECT_EQ(examined->ranks[1].pid, 1002);
}

TEST_F(ExaminingCoordinatorTest, ANonsensicalReportLosesItsRank) {
  for (const int64_t id : {1, 2}) attach_without_model(id);
  for (const int64_t id : {1, 2}) address(id, 1);
  report(1, -1);
  EXPECT_NE(coordinator_.status().last_end.find("rank 0"), std::string::npos);
  EXPECT_NE(coordinator_.status().last_end.find("gemm_gflops is -1"), std::string::npos)
      << coordinator_.status().last_end;
  EXPECT_EQ(coordinator_.status().failed_starts, 1);
}

TEST_F(ExaminingCoordinatorTest, AWorkerWithAModelIsRefused) {
  attach(1);
  const auto effects = coordinator_.take();
  ASSERT_EQ(effects.messages.size(), 1u);
  EXPECT_NE(effects.messages[0].message.refused().why().find("--doctor instead of a model"),
            std::string::npos);
}

TEST_F(ExaminingCoordinatorTest, AWorkerThatIsToBeSentItsModelIsRefused) {
  v1::WorkerMessage message = registration(-1, 1001);
  message.mutable_register_()->set_model_file(v1::MODEL_FILE_NONE);
  message.mutable_register_()->clear_model_fingerprint();
  coordinator_.attached(1, now_);
  coordinator_.received(1, message, now_);
  const auto effects = coordinator_.take();
  ASSERT_EQ(effects.messages.size(), 1u);
  EXPECT_NE(effects.messages[0].message.refused().why().find("--doctor instead of a model"),
            std::string::npos);
}

TEST_F(CoordinatorTest, AWorkerOfTheDoctorIsRefused) {
  v1::WorkerMessage message = registration(-1, 1001);
  message.mutable_register_()->clear_model_fingerprint();
  coordinator_.attached(1, now_);
  coordinator_.received(1, message, now_);
  const auto effects = coordinator_.take();
  ASSERT_EQ(effects.messages.size(), 1u);
  EXPECT_NE(effects.messages[0].message.refused().why().find("--model instead of --doctor"),
            std::string::npos);
}

}  // namespace
}  // namespace annulus::server
