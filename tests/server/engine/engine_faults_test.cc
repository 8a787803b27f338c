// SPDX-License-Identifier: Apache-2.0
// Refusals, lost epochs, cancels from sinks, shutting down while requests run.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/server/engine/rig.h"

namespace annulus::server {
namespace {

using annulus::testing::ask;
using annulus::testing::Heard;
using annulus::testing::prompt_of;
using annulus::testing::Rig;
using annulus::testing::RigOptions;

TEST(EngineFaults, RefusalsNeverCallTheSink) {
  RigOptions options;
  options.engine.max_queue = 1;
  options.engine.max_running = 1;
  options.engine.context = 512;
  Rig rig(options);
  EXPECT_EQ(rig.engine->context(), 512);
  const auto refused = [&](GenerateRequest request) {
    const absl::StatusOr<int64_t> id =
        rig.engine->submit(std::move(request), [](Event) { ADD_FAILURE() << "called"; });
    EXPECT_FALSE(id.ok());
    return id.status().code();
  };
  EXPECT_EQ(refused(ask({}, 5)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(ask({100000}, 5)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(ask(prompt_of(512), 5)), absl::StatusCode::kOutOfRange);
  GenerateRequest debug = ask(prompt_of(5), 5);
  debug.chunk_tokens = 3;
  EXPECT_EQ(refused(debug), absl::StatusCode::kInvalidArgument);
  // To go on with a conversation that is not here would answer without its history.
  GenerateRequest lost = ask(prompt_of(5), 5, "never begun");
  lost.append = true;
  EXPECT_EQ(refused(lost), absl::StatusCode::kNotFound);

  const std::shared_ptr<Heard> running = rig.start(ask(prompt_of(50), 400, "s"));
  running->wait_for_tokens(1);
  EXPECT_EQ(refused(ask(prompt_of(5), 5, "s")), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(rig.engine->rewind_session("s", 0).code(), absl::StatusCode::kFailedPrecondition);
  const std::shared_ptr<Heard> waiting = rig.start(ask(prompt_of(5), 5));
  EXPECT_EQ(refused(ask(prompt_of(5), 5)), absl::StatusCode::kResourceExhausted);
  rig.engine->cancel(running->id);
  waiting->wait();
  EXPECT_TRUE(waiting->finished);
}

TEST(EngineFaults, ALostEpochFailsRequestsAndTheNextServesThemAgain) {
  Rig rig;
  const std::shared_ptr<Heard> first = rig.run(ask(prompt_of(40), 6, "s"));
  GenerateRequest append = ask(prompt_of(4, 2), 300, "s");
  append.append = true;
  const std::shared_ptr<Heard> cut = rig.start(append);
  cut->wait_for_tokens(3);
  rig.ranks->lose("rank 1 lost: killed by a test");
  cut->wait();
  ASSERT_TRUE(cut->failed);
  EXPECT_EQ(cut->failed->code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(cut->failed->message().find("rank 1 lost"), std::string::npos) << *cut->failed;
  rig.wait_serving(false);
  const EngineMetrics counted = rig.engine->metrics();
  EXPECT_EQ(counted.epochs_lost, 1);
  EXPECT_GE(counted.generation_tokens, 6 + 3);
  const ClusterStatus status = rig.engine->status();
  EXPECT_FALSE(status.serving);
  EXPECT_NE(status.why_not.find("rank 1 lost"), std::string::npos);
  const absl::StatusOr<int64_t> refused = rig.engine->submit(append, [](Event) { FAIL(); });
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(refused.status().message().find("rank 1 lost"), std::string::npos);

  rig.ranks->restart();
  rig.wait_serving(true);
  EXPECT_EQ(rig.engine->status().epoch, 2);
  append.max_tokens = 12;
  const std::shared_ptr<Heard> again = rig.run(append);
  EXPECT_EQ(again->acceptance.cached_tokens, 0) << "KV is gone, tokens are not";
  // What is counted goes on, over epochs.
  const EngineMetrics went_on = rig.engine->metrics();
  EXPECT_EQ(went_on.epochs_lost, 1);
  EXPECT_EQ(went_on.generation_tokens, counted.generation_tokens + 12);
  EXPECT_EQ(went_on.prompt_tokens, counted.prompt_tokens + again->acceptance.prompt_tokens);
  EXPECT_EQ(went_on.cached_tokens, counted.cached_tokens);
  for (size_t rank = 0; rank < counted.ranks.size(); ++rank) {
    EXPECT_GT(went_on.ranks[rank].compute_s, counted.ranks[rank].compute_s);
  }
  std::vector<int32_t> all = prompt_of(40);
  all.insert(all.end(), first->ids.begin(), first->ids.end());
  const std::vector<int32_t> more = prompt_of(4, 2);
  all.insert(all.end(), more.begin(), more.end());
  EXPECT_EQ(again->ids, rig.run(ask(all, 12))->ids);
  EXPECT_EQ(cut->after_end, 0);
}

TEST(EngineFaults, ASinkMayCancel) {
  Rig rig;
  std::atomic<int64_t> id{0};
  auto heard = std::make_shared<Heard>();
  const absl::StatusOr<int64_t> submitted =
      rig.engine->submit(ask(prompt_of(10), 3000), [&, heard](Event event) {
        const bool token = std::holds_alternative<Token>(event);
        heard->hear(std::move(event));
        if (token && id > 0) rig.engine->cancel(id);
      });
  ASSERT_TRUE(submitted.ok());
  id = *submitted;
  heard->wait();
  EXPECT_EQ(heard->finished->reason, FinishReason::kCancelled);
  EXPECT_LT(heard->ids.size(), 3000u);
}

TEST(EngineFaults, ManyThreadsSubmitAndCancel) {
  RigOptions options;
  options.engine.max_running = 5;
  Rig rig(options);
  const std::shared_ptr<Heard> alone = rig.run(ask(prompt_of(33), 15));
  std::atomic<int> exact{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 8; ++i) {
        const std::shared_ptr<Heard> heard = rig.start(ask(prompt_of(33), 15));
        if ((t + i) % 3 == 0) {
          heard->wait_for_tokens(static_cast<size_t>(i));
          rig.engine->cancel(heard->id);
        }
        heard->wait();
        EXPECT_EQ(heard->after_end, 0);
        exact += heard->ids == alone->ids ? 1 : 0;
        EXPECT_TRUE(std::equal(heard->ids.begin(), heard->ids.end(), alone->ids.begin()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(exact.load(), 20);
  EXPECT_EQ(rig.engine->status().requests_running, 0);
}

TEST(EngineFaults, ShuttingDownEndsEveryRequest) {
  std::shared_ptr<Heard> running, waiting;
  {
    RigOptions options;
    options.engine.max_running = 1;
    Rig rig(options);
    running = rig.start(ask(prompt_of(10), 3000));
    running->wait_for_tokens(2);
    waiting = rig.start(ask(prompt_of(10), 5));
  }
  ASSERT_TRUE(running->finished && waiting->finished);
  EXPECT_EQ(running->finished->reason, FinishReason::kCancelled);
  EXPECT_EQ(waiting->finished->reason, FinishReason::kCancelled);
}

}  // namespace
}  // namespace annulus::server
