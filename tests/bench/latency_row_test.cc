// SPDX-License-Identifier: Apache-2.0
#include "bench/latency_row.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "absl/strings/str_split.h"

namespace annulus::bench {
namespace {

constexpr double kBound = 5e-4;

LatencyRow row(int cp, const std::string& variant, int64_t cached, double logprob = -1.5) {
  LatencyRow out;
  out.cp = cp;
  out.length = 1000;
  out.cached = cached;
  out.miss = 1 - static_cast<double>(cached) / 1000;
  out.variant = variant;
  out.chosen = variant == "auto" ? "pass-q" : variant;
  out.ttft_ms = {10, 12, 11};
  out.ttit_ms = {1, 2};
  out.prefill_us = {{"steps", 100}, {"attention", 60}, {"sendrecv", 40}};
  out.answer = {{7, logprob, 2}, {8, -0.25, 3}};
  return out;
}

LatencyRun run(std::vector<LatencyRow> rows) {
  LatencyRun out;
  out.model = "tiny";
  out.precision = "fp32";
  out.parameters = {{"repetitions", 3}};
  out.servers = nlohmann::json::array();
  out.servers.push_back({{"address", "a:1"},
                         {"tp", 1},
                         {"cp", rows.front().cp},
                         {"context", 4096},
                         {"ranks", nlohmann::json::array()}});
  out.rows = std::move(rows);
  check_rows(out);
  return out;
}

TEST(LatencyCheck, EqualAnswersAreRightAndTheirDifferenceIsKept) {
  const std::vector<CheckedToken> reference = {{7, -1, 2}, {8, -2, 2}};
  const Correctness same = compare(reference, {{7, -1.0001, 2}, {8, -2.0004, 2}}, kBound);
  EXPECT_TRUE(same.ok());
  EXPECT_EQ(same.compared, 2);
  EXPECT_NEAR(same.worst, 4e-4, 1e-9);
}

TEST(LatencyCheck, AnotherTokenIsWrongUnlessBothWereAsGood) {
  EXPECT_FALSE(compare({{7, -1, 0.5}}, {{8, -1, 0.5}}, kBound).ok());
  const Correctness tie = compare({{7, -1, 1e-4}, {1, -9, 1}}, {{8, -1, 1e-4}, {2, -3, 1}}, kBound);
  EXPECT_TRUE(tie.ok());  // what follows has another context
  EXPECT_TRUE(tie.parted);
  EXPECT_EQ(tie.compared, 0);
}

TEST(LatencyCheck, FarLogprobsMissingTokensAndNanAreWrong) {
  EXPECT_FALSE(compare({{7, -1, 2}}, {{7, -1.01, 2}}, kBound).ok());
  EXPECT_FALSE(compare({{7, -1, 2}, {8, -1, 2}}, {{7, -1, 2}}, kBound).ok());
  EXPECT_FALSE(compare({}, {}, kBound).ok());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(compare({{7, -1, 2}}, {{7, nan, 2}}, kBound).ok());
}

TEST(LatencyRun, TheFirstRowOfALengthIsItsReference) {
  LatencyRun both = run({row(1, "auto", 0), row(2, "pass-q", 0, -1.6)});
  EXPECT_TRUE(both.rows[0].check.reference);
  EXPECT_FALSE(both.rows[1].check.reference);
  EXPECT_EQ(wrong_rows(both), 1);
  EXPECT_NEAR(worst_difference(both), 0.1, 1e-9);
  both.precision = "default";
  check_rows(both);
  EXPECT_EQ(wrong_rows(both), 0);
}

TEST(LatencyRun, ATurnThatAnswersOtherwiseIsWrong) {
  LatencyRow strays = row(1, "auto", 0);
  strays.strayed = 2;
  EXPECT_EQ(wrong_rows(run({strays})), 1);
  strays.answer[0].lead = kBound;  // as good as a tie
  EXPECT_EQ(wrong_rows(run({strays})), 0);
}

TEST(LatencyRun, JsonComesBackAsItWas) {
  const LatencyRun before = run({row(1, "auto", 0), row(2, "pass-kv", 900)});
  const auto after = run_from_json(nlohmann::json::parse(to_json(before).dump()));
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(to_json(*after), to_json(before));
  EXPECT_EQ(to_json(before)["rows"][1]["ttft_ms"]["median"], 11);
}

TEST(LatencyRun, WhatIsNoResultIsRefused) {
  EXPECT_FALSE(run_from_json(nlohmann::json::array()).ok());
  EXPECT_FALSE(run_from_json({{"format", "another"}}).ok());
  nlohmann::json damaged = to_json(run({row(1, "auto", 0)}));
  damaged["rows"][0].erase("ttft_ms");
  EXPECT_FALSE(run_from_json(damaged).ok());
  damaged = to_json(run({row(1, "auto", 0)}));
  damaged["rows"][0]["answer"] = {{1, "x", 2}};
  EXPECT_FALSE(run_from_json(damaged).ok());
  damaged = to_json(run({row(1, "auto", 0)}));
  damaged["servers"][0]["ranks"] = {1};
  EXPECT_FALSE(run_from_json(damaged).ok());
  damaged["servers"] = "none";
  EXPECT_FALSE(run_from_json(damaged).ok());
}

TEST(LatencyRun, MergingJoinsServersAndReplacesWhatWasMeasuredAgain) {
  LatencyRow again = row(2, "auto", 0);
  again.ttft_ms = {5};
  const auto all = merge(
      {run({row(1, "auto", 0)}), run({row(2, "auto", 0), row(2, "auto", 900)}), run({again})});
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->rows.size(), 3u);
  EXPECT_EQ(all->rows[1].ttft_ms, std::vector<double>{5});
  EXPECT_EQ(all->servers.size(), 3u);
  EXPECT_EQ(all->parameters["misses"], (std::vector<double>{1, row(1, "", 900).miss}));
  EXPECT_TRUE(all->rows[0].check.reference);
  EXPECT_FALSE(all->rows[1].check.reference);
}

TEST(LatencyRun, DifferentModelsDoNotMix) {
  LatencyRun other = run({row(2, "auto", 0)});
  other.precision = "default";
  const auto mixed = merge({run({row(1, "auto", 0)}), other});
  EXPECT_EQ(mixed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(merge({}).ok());
}

TEST(LatencyRun, FilesThatAreMissingOrDamagedAreNamed) {
  EXPECT_EQ(read_runs({"/nowhere.json"}).status().code(), absl::StatusCode::kNotFound);
  const std::string file = ::testing::TempDir() + "latency-damaged.json";
  std::ofstream(file) << "{";
  const absl::Status status = read_runs({file}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find(file), std::string::npos);
}

TEST(LatencyRun, CsvHasALineARowAndAsManyFieldsAsItsHead) {
  const std::string csv = to_csv(run({row(1, "auto", 0), row(2, "pass-kv", 900)}));
  std::vector<std::string> lines = absl::StrSplit(csv, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 3u);
  const auto fields = [](const std::string& line) {
    return std::count(line.begin(), line.end(), ',');
  };
  EXPECT_EQ(fields(lines[0]), fields(lines[1]));
  EXPECT_EQ(lines[2].substr(0, 40), "1,2,1000,900,0.1,pass-kv,pass-kv,11.000,");
}

}  // namespace
}  // namespace annulus::bench
