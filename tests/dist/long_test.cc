// SPDX-License-Identifier: Apache-2.0
// Long prompts through gRPC into engines of processes, with the constructed model of bench/recall:
// 32,768 tokens here; the same code runs a million (annulus-bench recall).
#include <gtest/gtest.h>

#include "bench/recall_run.h"
#include "bench/server_process.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

using bench::RecallOptions;
using bench::RecallPrompt;
using bench::RecallReport;

absl::StatusOr<RecallPrompt> prepare(const bench::RecallLayout& layout, const std::string& folder,
                                     int32_t head_dim = 16, int32_t tp = 1) {
  auto prompt = bench::make_recall_prompt(layout, head_dim, tp, /*least_decoded=*/16);
  if (!prompt.ok()) return prompt;
  if (const auto s = bench::write_recall_model(prompt->model, folder); !s.ok()) return s;
  return prompt;
}

absl::StatusOr<bench::ServerProcess> serve(const std::string& folder, int cp, int tp,
                                           const char* precision) {
  return bench::ServerProcess::start({"--model", folder, "--cp", std::to_string(cp), "--tp",
                                      std::to_string(tp), "--threads", "1", "--precision",
                                      precision, "--debug-requests", "--log-level", "warn"});
}

void expect_proven(const absl::StatusOr<RecallReport>& report, const RecallPrompt& prompt) {
  ASSERT_TRUE(report.ok()) << report.status();
  for (const std::string& fault : report->faults) ADD_FAILURE() << fault;
  EXPECT_EQ(report->found, report->asked);
  EXPECT_EQ(report->asked, static_cast<int64_t>(prompt.forced.size()) +
                               static_cast<int64_t>(prompt.prompt_checks.size()) -
                               static_cast<int64_t>(prompt.needles.size()));
  EXPECT_EQ(report->progress_events, prompt.layout.tokens / prompt.layout.chunk);
}

TEST(Long, NeedlesOnEveryEdgeComeBackInEveryVariant) {
  const std::string folder = scratch_directory();
  const auto prompt = prepare({32768, 1024, 4}, folder);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_EQ(prompt->needles.size(), 32u * 8 * 3 - 1);
  const auto server = serve(folder, 4, 1, "default");
  ASSERT_TRUE(server.ok()) << server.status();
  const bench::Client client(server->address());

  // Cancelled at its start, in the middle and near its end: dropped at once, and the rows are free
  // when the step that runs, one that had left already and the one that frees them are done.
  for (const double after : {0.0, 0.13, 0.52, 0.97}) {
    const auto cancelled = bench::cancel_recall(client, *prompt, {}, after);
    ASSERT_TRUE(cancelled.ok()) << cancelled.status();
    EXPECT_LE(cancelled->steps, 3) << cancelled->tokens_done;
  }
  // Cut by the server, as it is by default: by time.
  RecallOptions by_time;
  by_time.in_chunks = false;
  const auto report = bench::run_recall(client, *prompt, by_time);
  ASSERT_TRUE(report.ok()) << report.status();
  for (const std::string& fault : report->faults) ADD_FAILURE() << fault;
  EXPECT_EQ(report->found, report->asked);

  for (const auto attention : {v1::ATTENTION_AUTO, v1::ATTENTION_PASS_KV, v1::ATTENTION_PASS_Q}) {
    RecallOptions options;
    options.attention = attention;
    const auto in_chunks = bench::run_recall(client, *prompt, options);
    expect_proven(in_chunks, *prompt);
    if (!in_chunks.ok() || attention == v1::ATTENTION_AUTO) continue;
    const char* variant = attention == v1::ATTENTION_PASS_KV ? "pass-kv" : "pass-q";
    EXPECT_EQ(in_chunks->prefill_steps.at(variant), 32);
    EXPECT_EQ(in_chunks->prefill_steps.size(), 1u);
  }
}

// Rank counts that divide nothing, and a head wide enough for the few-row kernel.
TEST(Long, UnevenChunksOverThreeRanks) {
  const std::string folder = scratch_directory();
  const auto prompt = prepare({20001, 1001, 3}, folder, /*head_dim=*/64);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  const auto server = serve(folder, 3, 1, "default");
  ASSERT_TRUE(server.ok()) << server.status();
  const auto report = bench::run_recall(bench::Client(server->address()), *prompt, {});
  ASSERT_TRUE(report.ok()) << report.status();
  for (const std::string& fault : report->faults) ADD_FAILURE() << fault;
  EXPECT_EQ(report->found, report->asked);
}

TEST(Long, TensorParallelHeadsRecallToo) {
  const std::string folder = scratch_directory();
  const auto prompt = prepare({8192, 512, 2}, folder, 16, 2);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  const auto server = serve(folder, 2, 2, "default");
  ASSERT_TRUE(server.ok()) << server.status();
  expect_proven(bench::run_recall(bench::Client(server->address()), *prompt, {}), *prompt);
}

// Scores are equal to the bit; what differs is the order in which probabilities are added. A total
// errs by 2^-24 for each of the 64 keys of a tile and each tile of a split (at most 171 here), on
// both sides, and a logit of 104 p moves by at most 26 times that: 7e-4 if all errors conspired.
TEST(Long, EqualToOneRank) {
  const std::string folder = scratch_directory();
  const auto prompt = prepare({16384, 512, 4}, folder);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  RecallOptions options;
  options.bf16_cache = false;
  std::vector<RecallReport> reports;
  for (const int cp : {4, 1}) {
    const auto server = serve(folder, cp, 1, "fp32");
    ASSERT_TRUE(server.ok()) << server.status();
    const bench::Client client(server->address());
    auto report = bench::run_recall(client, *prompt, options);
    expect_proven(report, *prompt);
    if (!report.ok()) return;
    reports.push_back(*std::move(report));
  }
  const auto worst = bench::largest_difference(reports[0], reports[1]);
  ASSERT_TRUE(worst.ok()) << worst.status();
  EXPECT_LE(*worst, 5e-4);
}

// The proof has to be able to fail: what one lost, doubled or displaced key would do to the
// computed answer is far beyond the tolerance.
TEST(Long, OneKeyMoreOrLessChangesTheAnswer) {
  const auto prompt = bench::make_recall_prompt({32768, 1024, 4}, 16, 1, 16);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  const bench::RecallCheck check = prompt->prompt_checks.back();
  const bench::PlacedNeedle needle = prompt->needles[static_cast<size_t>(check.code)];
  ASSERT_TRUE(check.ask);
  const auto answer = [&](std::vector<bench::PlacedNeedle> needles, int64_t fillers) {
    return bench::expected(prompt->model, check.code, check.position, needles, fillers, true);
  };
  const int64_t fillers = prompt->fillers_up_to(check.position);
  const auto whole = answer(prompt->needles, fillers);
  EXPECT_EQ(whole.best, prompt->model.needle_id(check.code));
  EXPECT_GT(whole.margin, 3);

  auto lost = prompt->needles, doubled = prompt->needles, displaced = prompt->needles;
  lost.erase(lost.begin() + check.code);
  doubled.push_back(needle);
  displaced[static_cast<size_t>(check.code)].position += 2;
  EXPECT_NE(answer(lost, fillers).best, whole.best);
  // Ids one bit away: their log-probabilities are among those reported.
  const int32_t near = prompt->model.needle_id(check.code ^ 1);
  const double before = whole.logprob(prompt->model, near);
  EXPECT_GT(std::abs(answer(doubled, fillers).logprob(prompt->model, near) - before), 0.3);
  EXPECT_GT(std::abs(answer(displaced, fillers).logprob(prompt->model, near) - before), 0.3);
  EXPECT_GT(std::abs(answer(prompt->needles, fillers - 1024).logprob(prompt->model, near) - before),
            0.02);
}

}  // namespace
}  // namespace annulus::testing
