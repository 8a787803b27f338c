// SPDX-License-Identifier: Apache-2.0
#include "server/scheduler.h"

#include <gtest/gtest.h>

#include "tests/server/scheduler/driver.h"

namespace annulus::server {
namespace {

using annulus::testing::answer_alone;
using annulus::testing::ask;
using annulus::testing::Driver;
using annulus::testing::driver_limits;
using annulus::testing::kDriverVocab;
using annulus::testing::some_ids;
using annulus::testing::test_policy;
using annulus::testing::Told;
using parallel::Item;
using parallel::Op;
using parallel::Placement;

TEST(Scheduler, DecodePlansLeaveBeforeTheirTokenIsKnown) {
  Driver driver;
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(10), 5)).ok());
  ASSERT_NE(driver.send(), nullptr);
  ASSERT_NE(driver.send(), nullptr);
  EXPECT_EQ(driver.send(), nullptr) << "two plans are out";
  const Item& decode = driver.plans[1].plan.items.at(0);
  EXPECT_EQ(decode.placement, Placement::kDecode);
  EXPECT_EQ(decode.sampled, (parallel::SampledRef{driver.plans[0].plan.step, 0}));
  EXPECT_TRUE(decode.tokens.empty());
  driver.finish();
  // One step for the prompt, four for the tokens that are fed: the fifth never is.
  EXPECT_EQ(driver.plans.size(), 5u + 1u);
  EXPECT_TRUE(driver.plans.back().plan.items.empty()) << "the slot is given back";
  EXPECT_EQ(driver.ranks.positions_computed(), 14);
  const Told& told = driver.told[1];
  EXPECT_EQ(told.answer, answer_alone({some_ids(10), {}, {}, 0, 5}, kDriverVocab));
  EXPECT_EQ(told.finished->reason, FinishReason::kLength);
  EXPECT_EQ(told.finished->usage.completion_tokens, 5);
}

// A cancel must not cost more than the step that runs: behind a long one no other leaves.
TEST(Scheduler, NoPlanLeavesBehindALongPrefill) {
  Driver driver(driver_limits(), 2, 4000);
  parallel::PolicyInput slow = test_policy(2);
  slow.profile.linear_us_per_row = 1e3;  // 100 ms for 200 rows on two ranks
  driver.scheduler.lose_epoch(absl::UnavailableError("another machine"));
  driver.scheduler.begin_epoch(1, slow, 4000);
  GenerateRequest request = ask(some_ids(600), 5);
  request.chunk_tokens = 200;
  const auto id = driver.scheduler.submit(request);
  ASSERT_TRUE(id.ok());
  ASSERT_NE(driver.send(), nullptr);
  EXPECT_EQ(driver.send(), nullptr);
  driver.complete();
  ASSERT_NE(driver.send(), nullptr);
  driver.scheduler.cancel(*id);
  EXPECT_EQ(driver.send(), nullptr) << "rows are given back when nothing runs";
  driver.complete();
  ASSERT_NE(driver.send(), nullptr);
  EXPECT_TRUE(driver.plans.back().plan.items.empty());
  EXPECT_EQ(driver.plans.back().plan.ops.at(0).kind, Op::Kind::kRelease);
  EXPECT_EQ(driver.plans.size(), 3u);
}

// Log-probabilities of a long prompt come in portions that fit a message and a reader's outbox,
// whatever the chunk that time would allow, and whatever was asked for.
TEST(Scheduler, LogprobsOfALongPromptComeInPortions) {
  SchedulerLimits limits = driver_limits();
  limits.context = 100000;
  limits.max_step_us = 1e12;
  for (const int32_t top : {0, 128}) {
    for (const int32_t chunk : {0, 60000}) {
      Driver driver(limits, 2, 200000);
      std::vector<int64_t> ids;
      for (int i = 0; i < 2; ++i) {
        GenerateRequest request = ask(some_ids(40000), 2);
        request.all_prompt_logprobs = true;
        request.top_logprobs = top;
        if (chunk > 0) request.chunk_tokens = chunk;
        const auto id = driver.scheduler.submit(request);
        ASSERT_TRUE(id.ok()) << id.status();
        ids.push_back(*id);
      }
      driver.finish();
      for (const auto& planned : driver.plans) {
        int64_t entries = 0;
        for (const Item& item : planned.plan.items) {
          EXPECT_LE(static_cast<int64_t>(item.wanted.size()), Scheduler::kStepScored + 1);
          for (const parallel::Wanted& wanted : item.wanted) entries += 1 + wanted.top;
        }
        EXPECT_LE(entries, Scheduler::kStepLogprobs + 200);
      }
      for (const int64_t id : ids) EXPECT_EQ(driver.told[id].scored.size(), 39999u + 1u);
    }
  }
}

TEST(Scheduler, AStopFoundLateIsTakenBack) {
  const std::vector<int32_t> alone = answer_alone({some_ids(10), {}, {}, 0, 8}, kDriverVocab);
  Driver driver;
  GenerateRequest request = ask(some_ids(10), 8, "s");
  request.stop_ids = {alone[3]};
  const Told told = driver.run(request);
  EXPECT_EQ(told.finished->reason, FinishReason::kStop);
  EXPECT_EQ(told.answer, std::vector<int32_t>(alone.begin(), alone.begin() + 4));
  // The stop id is part of the session but was not to be fed.
  const parallel::SlotShard& slot = driver.ranks.state().slots.begin()->second;
  EXPECT_EQ(slot.length, 10 + 4 - 1);
  const std::vector<Op>& ops = driver.plans.back().plan.ops;
  ASSERT_EQ(ops.size(), 1u);
  EXPECT_EQ(ops[0].kind, Op::Kind::kTruncate);
  EXPECT_EQ(ops[0].length, 13);
  // And the next turn is exact.
  GenerateRequest next = ask(some_ids(5, 77), 6, "s");
  next.append = true;
  std::vector<int32_t> all = some_ids(10);
  all.insert(all.end(), told.answer.begin(), told.answer.end());
  const std::vector<int32_t> more = some_ids(5, 77);
  all.insert(all.end(), more.begin(), more.end());
  const Told second = driver.run(next);
  EXPECT_EQ(second.cached_tokens, 13);
  EXPECT_EQ(second.prompt_tokens, 19);
  EXPECT_EQ(second.answer, answer_alone({all, {}, {}, 0, 6}, kDriverVocab));
}

TEST(Scheduler, FinishEarlyMayKeepFewerThanAreKnown) {
  Driver driver;
  const auto id = driver.scheduler.submit(ask(some_ids(10), 100, "s"));
  ASSERT_TRUE(id.ok());
  for (int i = 0; i < 5; ++i) {
    while (driver.send() != nullptr) {
    }
    driver.complete();
  }
  driver.send();
  driver.scheduler.finish_early(*id, 2);
  driver.finish();
  const Told& told = driver.told[*id];
  EXPECT_EQ(told.finished->reason, FinishReason::kStop);
  EXPECT_EQ(told.finished->usage.completion_tokens, 2);
  std::vector<int32_t> all = some_ids(10);
  all.insert(all.end(), told.answer.begin(), told.answer.begin() + 2);
  EXPECT_EQ(*driver.scheduler.session_tokens("s"), all);
  all.push_back(5);
  const Told next = driver.run(ask(all, 6, "s"));
  EXPECT_EQ(next.cached_tokens, 11);
  EXPECT_EQ(next.answer, answer_alone({all, {}, {}, 0, 6}, kDriverVocab));
}

TEST(Scheduler, CancelMidFlightLeavesTheSessionExact) {
  Driver driver;
  const auto id = driver.scheduler.submit(ask(some_ids(10), 100, "s"));
  ASSERT_TRUE(id.ok());
  for (int i = 0; i < 4; ++i) {
    while (driver.send() != nullptr) {
    }
    driver.complete();
  }
  driver.send();
  driver.scheduler.cancel(*id);
  driver.collect();
  ASSERT_TRUE(driver.told[*id].finished);
  EXPECT_EQ(driver.told[*id].finished->reason, FinishReason::kCancelled);
  EXPECT_EQ(driver.told[*id].answer.size(), 4u);
  driver.finish();
  EXPECT_EQ(driver.told[*id].answer.size(), 4u) << "nothing follows the end";
  std::vector<int32_t> all = some_ids(10);
  all.insert(all.end(), driver.told[*id].answer.begin(), driver.told[*id].answer.end());
  EXPECT_EQ(*driver.scheduler.session_tokens("s"), all);
  all.push_back(5);
  const Told next = driver.run(ask(all, 6, "s"));
  EXPECT_EQ(next.cached_tokens, 13);
  EXPECT_EQ(next.answer, answer_alone({all, {}, {}, 0, 6}, kDriverVocab));
  driver.scheduler.cancel(12345);  // unknown: nothing happens
  driver.scheduler.cancel(*id);
  driver.collect();
}

TEST(Scheduler, AStepMixesDecodeRowsAndChunks) {
  SchedulerLimits limits = driver_limits();
  limits.chunk_tokens = 50;
  Driver driver(limits);
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(8), 20)).ok());
  driver.send();
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(120), 4)).ok());
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(9), 4)).ok());
  driver.send();
  const parallel::StepPlan& mixed = driver.plans[1].plan;
  ASSERT_EQ(mixed.items.size(), 3u);
  EXPECT_EQ(mixed.items[0].placement, Placement::kDecode);
  EXPECT_EQ(mixed.items[1].count(), 50);
  EXPECT_EQ(mixed.items[2].count(), 9);
  driver.finish();
  EXPECT_EQ(driver.told[1].answer, answer_alone({some_ids(8), {}, {}, 0, 20}, kDriverVocab));
  EXPECT_EQ(driver.told[2].answer, answer_alone({some_ids(120), {}, {}, 0, 4}, kDriverVocab));
  EXPECT_EQ(driver.told[3].answer, answer_alone({some_ids(9), {}, {}, 0, 4}, kDriverVocab));
  const std::vector<PrefillProgress>& progress = driver.told[2].progress;
  ASSERT_EQ(progress.size(), 3u);
  EXPECT_EQ(progress[0].done, 50);
  EXPECT_EQ(progress[1].done, 100);
  EXPECT_EQ(progress[2].done, 120);
  EXPECT_EQ(progress[2].total, 120);
  for (const double us : progress[0].predicted_us) EXPECT_GT(us, 0);
}

TEST(Scheduler, ForcedTokensAreFedOneAStepThroughTheDecodePath) {
  Driver driver;
  GenerateRequest request = ask(some_ids(10), 6);
  request.forced_tokens = {500, 501, 502, 503};
  request.top_logprobs = 2;
  const Told told = driver.run(request);
  EXPECT_EQ(told.answer,
            answer_alone({some_ids(10), {500, 501, 502, 503}, {}, 0, 6}, kDriverVocab));
  ASSERT_EQ(told.tokens.size(), 6u);
  EXPECT_EQ(told.tokens[2].id, 502);
  EXPECT_EQ(told.tokens[2].logprob, -502) << "of the forced id, not of a sample";
  EXPECT_EQ(told.tokens[2].top.size(), 2u);
  for (size_t i = 1; i <= 4; ++i) {
    const Item& item = driver.plans[i].plan.items.at(0);
    EXPECT_EQ(item.placement, Placement::kDecode);
    EXPECT_EQ(item.tokens, std::vector<int32_t>{static_cast<int32_t>(499 + i)});
  }
  EXPECT_EQ(driver.plans[5].plan.items.at(0).sampled.step, driver.plans[4].plan.step);
}

TEST(Scheduler, PromptLogprobsLimitTheReuse) {
  Driver driver;
  driver.run(ask(some_ids(40), 2, "s"));
  GenerateRequest request = ask(some_ids(45), 2, "s");
  request.prompt_logprob_positions = {44, 30, 30, 33};
  const Told told = driver.run(request);
  EXPECT_EQ(told.cached_tokens, 30);
  ASSERT_EQ(told.scored.size(), 3u);
  EXPECT_EQ(told.scored[0].position, 30);
  EXPECT_EQ(told.scored[0].token, some_ids(45)[31]);
  EXPECT_EQ(told.scored[1].position, 33);
  EXPECT_EQ(told.scored[2].position, 44);
  EXPECT_EQ(told.scored[2].token, -1) << "nothing follows the last prompt token";

  GenerateRequest all = ask(some_ids(45), 1, "s");
  all.all_prompt_logprobs = true;
  const Told every = driver.run(all);
  EXPECT_EQ(every.cached_tokens, 44) << "every computed position, and only those";
  EXPECT_EQ(every.scored.size(), 1u);

  request.prompt_logprob_positions = {45};
  EXPECT_EQ(driver.run(request).failed->code(), absl::StatusCode::kInvalidArgument);
}

TEST(Scheduler, MaxTokensIsCappedToTheContext) {
  Driver driver;
  EXPECT_EQ(driver.run(ask(some_ids(990), 500)).answer.size(), 10u);
  EXPECT_EQ(driver.run(ask(some_ids(990), 0)).answer.size(), 10u);
  EXPECT_EQ(driver.run(ask(some_ids(999), 0)).answer.size(), 1u);
  const Told refused = driver.run(ask(some_ids(1000), 5));
  EXPECT_EQ(refused.failed->code(), absl::StatusCode::kOutOfRange);
  EXPECT_NE(refused.failed->message().find("1000 tokens"), std::string::npos);
}

TEST(Scheduler, WhatCanNeverFitIsRefusedAndTheRestWaits) {
  Driver driver(driver_limits(), 2, 100);
  const Told refused = driver.run(ask(some_ids(100), 300));
  ASSERT_TRUE(refused.failed);
  EXPECT_EQ(refused.failed->code(), absl::StatusCode::kOutOfRange);
  EXPECT_NE(refused.failed->message().find("ask for at most"), std::string::npos);
  EXPECT_FALSE(driver.run(ask(some_ids(100), 0)).failed) << "0: as many as fit";
  EXPECT_EQ(driver.run(ask(some_ids(500), 1)).failed->code(), absl::StatusCode::kOutOfRange);

  // Two that do not fit together run one after the other.
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(100), 20)).ok());
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(100), 21)).ok());
  driver.send();
  EXPECT_EQ(driver.scheduler.running(), 1);
  EXPECT_EQ(driver.scheduler.waiting(), 1);
  driver.finish();
  EXPECT_EQ(driver.told.rbegin()->second.answer.size(), 21u);
  EXPECT_LE(driver.ranks.largest_rows(), 100);
}

TEST(Scheduler, QueueIsBounded) {
  SchedulerLimits limits = driver_limits();
  limits.max_queue = 2;
  limits.max_running = 1;
  Driver driver(limits);
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(5), 5)).ok());
  driver.send();
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(5), 5)).ok());
  const auto third = driver.scheduler.submit(ask(some_ids(6), 5));
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(driver.scheduler.submit(ask(some_ids(5), 5)).status().code(),
            absl::StatusCode::kResourceExhausted);
  driver.scheduler.cancel(*third);
  driver.collect();
  EXPECT_TRUE(driver.told[*third].accepted);
  EXPECT_EQ(driver.told[*third].finished->reason, FinishReason::kCancelled);
  driver.finish();
  EXPECT_EQ(driver.told[2].answer.size(), 5u);
}

TEST(Scheduler, ForcedVariantsAndChunksOfARequest) {
  for (int32_t v = 0; v < parallel::kVariants; ++v) {
    Driver driver(driver_limits(), 3);
    GenerateRequest request = ask(some_ids(100), 4);
    request.variant = static_cast<parallel::Variant>(v);
    request.chunk_tokens = 33;
    const Told told = driver.run(request);
    EXPECT_EQ(told.answer, answer_alone({some_ids(100), {}, {}, 0, 4}, kDriverVocab));
    EXPECT_EQ(told.finished->usage.prefill_steps[v], 4);
    EXPECT_EQ(told.finished->usage.decode_steps[v], 3);
    for (const PlannedStep& planned : driver.plans) {
      for (const parallel::Group& group : planned.plan.groups) {
        EXPECT_EQ(group.variant, static_cast<parallel::Variant>(v));
      }
    }
  }
}

TEST(Scheduler, DecodeRowsAreSpreadOverTheRanks) {
  Driver driver(driver_limits(), 4);
  for (int32_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(10 + i), 12 + 3 * i)).ok());
  }
  driver.finish();
  int64_t steps = 0;
  for (const PlannedStep& planned : driver.plans) {
    std::vector<int64_t> rows(4, 0);
    int64_t decodes = 0;
    for (const Item& item : planned.plan.items) {
      if (item.placement != Placement::kDecode) continue;
      ++decodes;
      ++rows[static_cast<size_t>(parallel::owner(planned.before, item, item.spans.front().first))];
    }
    steps += decodes > 0 ? 1 : 0;
    for (const int64_t r : rows) EXPECT_LE(r, (decodes + 3) / 4 + 1);
  }
  EXPECT_GT(steps, 30);
}

TEST(Scheduler, SameCallsSamePlans) {
  std::vector<std::string> runs[2];
  for (std::vector<std::string>& run : runs) {
    Driver driver(driver_limits(), 3, 300);
    for (int32_t i = 0; i < 12; ++i) {
      (void)driver.scheduler.submit(
          ask(some_ids(20 + 9 * i), 10 + i, i % 3 == 0 ? std::string(1, 'a') : ""));
      driver.send();
      if (i % 4 == 3) driver.scheduler.cancel(i);
      if (driver.out.size() == 2) driver.complete();
    }
    driver.finish();
    for (const PlannedStep& planned : driver.plans) run.push_back(parallel::encode(planned.plan));
  }
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_GT(runs[0].size(), 20u);
}

TEST(Scheduler, ALostEpochFailsRequestsAndKeepsSessions) {
  Driver driver;
  const Told first = driver.run(ask(some_ids(30), 5, "s"));
  std::vector<int32_t> held = *driver.scheduler.session_tokens("s");
  GenerateRequest request = ask(some_ids(4, 9), 50, "s");
  request.append = true;
  const auto id = driver.scheduler.submit(request);
  ASSERT_TRUE(id.ok());
  const auto waiting = driver.scheduler.submit(ask(some_ids(3), 5, "new"));
  driver.send();
  driver.complete();
  driver.send();
  driver.scheduler.lose_epoch(absl::UnavailableError("rank 1 lost: killed"));
  driver.collect();
  EXPECT_EQ(driver.told[*id].failed->code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(driver.told[*waiting].failed->message(), "rank 1 lost: killed");
  EXPECT_EQ(*driver.scheduler.session_tokens("s"), held) << "the request can be repeated";
  EXPECT_FALSE(driver.scheduler.session_tokens("new").ok());
  EXPECT_EQ(driver.scheduler.submit(request).status().code(), absl::StatusCode::kUnavailable);

  driver.out.clear();
  driver.ranks = annulus::testing::FakeRanks(3, kDriverVocab, 4000, 1);
  driver.scheduler.begin_epoch(2, test_policy(3), 4000);
  const Told again = driver.run(request);
  EXPECT_EQ(again.cached_tokens, 0);
  const std::vector<int32_t> more = some_ids(4, 9);
  held.insert(held.end(), more.begin(), more.end());
  EXPECT_EQ(again.answer, answer_alone({held, {}, {}, 0, 50}, kDriverVocab));
  EXPECT_EQ(driver.plans.back().plan.epoch, 2);
}

}  // namespace
}  // namespace annulus::server
