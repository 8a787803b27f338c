// SPDX-License-Identifier: Apache-2.0
// Sessions as a client sees them: prefixes, rewinding, eviction.
#include "server/sessions.h"

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
using annulus::testing::Told;

TEST(Sessions, ReuseTheLongestCommonPrefix) {
  Driver driver;
  const Told first = driver.run(ask(some_ids(50), 8, "s"));
  EXPECT_EQ(first.cached_tokens, 0);
  // The same prompt: all but its last token, whose logits are needed.
  EXPECT_EQ(driver.run(ask(some_ids(50), 8, "s")).cached_tokens, 49);
  // A branch at position 20.
  std::vector<int32_t> branch = some_ids(50);
  branch[20] = 999;
  const Told other = driver.run(ask(branch, 8, "s"));
  EXPECT_EQ(other.cached_tokens, 20);
  EXPECT_EQ(other.answer, answer_alone({branch, {}, {}, 0, 8}, kDriverVocab));
  // Shorter than what is held.
  const Told shorter = driver.run(ask(some_ids(10), 3, "s"));
  EXPECT_EQ(shorter.cached_tokens, 9);
  EXPECT_EQ(shorter.answer, answer_alone({some_ids(10), {}, {}, 0, 3}, kDriverVocab));
  // Nothing in common.
  const Told none = driver.run(ask(some_ids(10, 500), 3, "s"));
  EXPECT_EQ(none.cached_tokens, 0);
  EXPECT_EQ(none.answer, answer_alone({some_ids(10, 500), {}, {}, 0, 3}, kDriverVocab));
}

TEST(Sessions, ANewTurnMayChangeTheSampling) {
  Driver driver;
  driver.run(ask(some_ids(20), 4, "s"));
  GenerateRequest request = ask(some_ids(25), 4, "s");
  request.sampling.seed = 99;
  EXPECT_EQ(driver.run(request).answer, answer_alone({some_ids(25), {}, {}, 99, 4}, kDriverVocab));
}

TEST(Sessions, BusyOnesRefuseAnother) {
  Driver driver;
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(20), 4, "s")).ok());
  for (int i = 0; i < 2; ++i) {
    const auto second = driver.scheduler.submit(ask(some_ids(20), 4, "s"));
    EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(driver.scheduler.rewind("s", 1).code(), absl::StatusCode::kFailedPrecondition);
    driver.send();  // first it waits, then it runs
  }
  driver.finish();
  EXPECT_TRUE(driver.scheduler.rewind("s", 1).ok());
}

TEST(Sessions, RewindAndClose) {
  Driver driver;
  const Told first = driver.run(ask(some_ids(30), 6, "s"));
  EXPECT_EQ(driver.scheduler.rewind("t", 0).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(driver.scheduler.rewind("s", 37).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(driver.scheduler.rewind("s", -1).code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(driver.scheduler.rewind("s", 36).ok());
  ASSERT_TRUE(driver.scheduler.rewind("s", 31).ok());
  GenerateRequest append = ask(some_ids(5, 3), 4, "s");
  append.append = true;
  std::vector<int32_t> all = some_ids(30);
  all.push_back(first.answer[0]);
  const std::vector<int32_t> more = some_ids(5, 3);
  all.insert(all.end(), more.begin(), more.end());
  const Told second = driver.run(append);
  EXPECT_EQ(second.cached_tokens, 31);
  EXPECT_EQ(second.answer, answer_alone({all, {}, {}, 0, 4}, kDriverVocab));
  ASSERT_TRUE(driver.scheduler.rewind("s", 0).ok());
  driver.finish();
  EXPECT_TRUE(driver.ranks.state().slots.empty()) << "closed sessions give their rows back at once";
  EXPECT_EQ(driver.scheduler.sessions(), 0);
  EXPECT_EQ(driver.scheduler.rewind("s", 0).code(), absl::StatusCode::kNotFound);
}

TEST(Sessions, AppendWithoutMoreGoesOn) {
  Driver driver;
  const Told first = driver.run(ask(some_ids(30), 6, "s"));
  GenerateRequest on = ask({}, 6, "s");
  on.append = true;
  const Told second = driver.run(on);
  std::vector<int32_t> both = first.answer;
  both.insert(both.end(), second.answer.begin(), second.answer.end());
  EXPECT_EQ(both, answer_alone({some_ids(30), {}, {}, 0, 12}, kDriverVocab));
  EXPECT_EQ(second.cached_tokens, 35);
  on.session = "unknown";
  EXPECT_EQ(driver.run(on).failed->code(), absl::StatusCode::kNotFound);
}

TEST(Sessions, TheLeastRecentlyUsedGoesFirst) {
  SchedulerLimits limits = driver_limits();
  limits.max_sessions = 2;
  Driver driver(limits);
  driver.run(ask(some_ids(10), 2, "a"));
  driver.run(ask(some_ids(10), 2, "b"));
  driver.run(ask(some_ids(10), 2, "a"));
  driver.run(ask(some_ids(10), 2, "c"));
  EXPECT_TRUE(driver.scheduler.session_tokens("a").ok());
  EXPECT_FALSE(driver.scheduler.session_tokens("b").ok());
  EXPECT_TRUE(driver.scheduler.session_tokens("c").ok());
}

// KV runs out: idle sessions lose their rows, oldest first, but not their tokens.
TEST(Sessions, IdleKvMakesRoom) {
  Driver driver(driver_limits(), 2, 130);
  driver.run(ask(some_ids(100), 2, "a"));
  driver.run(ask(some_ids(100, 3), 2, "b"));
  EXPECT_EQ(driver.run(ask(some_ids(100), 50)).cached_tokens, 0);
  GenerateRequest append = ask({1, 2}, 2, "b");
  append.append = true;
  EXPECT_GT(driver.run(append).cached_tokens, 100) << "the younger one kept its rows";
  append.session = "a";
  const std::vector<int32_t> held = *driver.scheduler.session_tokens("a");
  const Told again = driver.run(append);
  EXPECT_EQ(again.prompt_tokens, static_cast<int64_t>(held.size()) + 2);
  EXPECT_EQ(again.cached_tokens, 0) << "computed again";
  std::vector<int32_t> all = held;
  all.insert(all.end(), {1, 2});
  EXPECT_EQ(again.answer, answer_alone({all, {}, {}, 0, 2}, kDriverVocab));
}

// The queue's head needs rows that sessions further back in the queue hold.
TEST(Sessions, WaitingSessionsGiveRowsToTheHeadOfTheQueue) {
  Driver driver(driver_limits(), 1, 200);
  driver.run(ask(some_ids(100), 2, "a"));
  ASSERT_TRUE(driver.scheduler.submit(ask(some_ids(150), 20)).ok());
  GenerateRequest append = ask({1, 2}, 2, "a");
  append.append = true;
  const auto id = driver.scheduler.submit(append);
  ASSERT_TRUE(id.ok());
  driver.finish();
  EXPECT_EQ(driver.told[2].answer.size(), 20u);
  EXPECT_EQ(driver.told[*id].answer.size(), 2u);
}

}  // namespace
}  // namespace annulus::server
