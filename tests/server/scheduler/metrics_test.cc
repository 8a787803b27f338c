// SPDX-License-Identifier: Apache-2.0
#include "server/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace annulus::server {
namespace {

constexpr double kBounds[] = {1, 2};

TEST(Metrics, AnObservationIsCountedByTheLeastBoundThatItDoesNotExceed) {
  Histogram histogram(kBounds);
  for (const double value : {0.0, 1.0, 1.5, 2.0, 2.5, 100.0}) histogram.observe(value);
  EXPECT_EQ(histogram.counts, (std::vector<int64_t>{2, 2, 2}));
  EXPECT_EQ(histogram.sum, 107);
}

StepSummary summary_of(bool decode_only, std::vector<parallel::Variant> variants) {
  StepSummary out;
  out.decode_only = decode_only;
  for (const parallel::Variant variant : variants) out.groups.push_back({variant, {}});
  return out;
}

parallel::StepResult result_of(int32_t rank, float step_us, float waited_us, float exposed_us) {
  parallel::StepResult out;
  out.world_rank = rank;
  out.step_us = step_us;
  out.waited_us = waited_us;
  out.idle_us = 1e6f;
  out.groups = {{.bytes_sent = 100, .exposed_us = exposed_us}};
  return out;
}

TEST(Metrics, AStepIsCountedByPhaseVariantAndRank) {
  EngineMetrics metrics;
  metrics.ranks.resize(2);
  using parallel::Variant;
  const std::vector<parallel::StepResult> results = {result_of(0, 4e6f, 3e6f, 2e6f),
                                                     result_of(1, 3e6f, 0, 0)};
  metrics.count_step(summary_of(false, {Variant::kPassKv, Variant::kGatherQ}), results);
  metrics.count_step(summary_of(true, {Variant::kGatherQ}), results);
  metrics.count_step(summary_of(false, {}), results);  // gives memory back
  const auto prefill = static_cast<size_t>(StepPhase::kPrefill);
  const auto decode = static_cast<size_t>(StepPhase::kDecode);
  const auto v = [](Variant variant) { return static_cast<size_t>(variant); };
  EXPECT_EQ(metrics.steps[prefill][v(Variant::kPassKv)], 1);
  EXPECT_EQ(metrics.steps[prefill][v(Variant::kPassQ)], 0);
  EXPECT_EQ(metrics.steps[prefill][v(Variant::kGatherQ)], 1);
  EXPECT_EQ(metrics.steps[decode][v(Variant::kGatherQ)], 1);
  EXPECT_NEAR(metrics.step_time[prefill].sum, 4, 1e-6);  // the slowest rank's
  EXPECT_NEAR(metrics.step_time[decode].sum, 4, 1e-6);
  const RankCounts& waits = metrics.ranks[0];
  EXPECT_NEAR(waits.compute_s, 3 * 1, 1e-6);
  EXPECT_NEAR(waits.ring_s, 3 * 2, 1e-6);
  EXPECT_NEAR(waits.other_s, 3 * 1, 1e-6);
  EXPECT_NEAR(waits.idle_s, 3, 1e-6);
  EXPECT_EQ(waits.sent_bytes, 300);
  EXPECT_NEAR(metrics.ranks[1].compute_s, 9, 1e-6);
  EXPECT_EQ(metrics.ranks[1].ring_s + metrics.ranks[1].other_s, 0);
}

// Figures come from other processes: none makes a counter fall, or no number.
TEST(Metrics, WhatIsNoTimeCountsAsNone) {
  EngineMetrics metrics;
  metrics.ranks.resize(1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const float bad : {nan, inf, -inf, -1e6f}) {
    parallel::StepResult result = result_of(0, bad, bad, bad);
    result.idle_us = bad;
    result.groups[0].bytes_sent = -5;
    metrics.count_step(summary_of(true, {parallel::Variant::kPassKv}), {&result, 1});
  }
  // Waits of more than the step, and of more in attention than in all, are cut.
  const parallel::StepResult wide = result_of(0, 1e6f, 5e6f, 9e6f);
  metrics.count_step(summary_of(true, {parallel::Variant::kPassKv}), {&wide, 1});
  const RankCounts& rank = metrics.ranks[0];
  EXPECT_EQ(rank.compute_s, 0);
  EXPECT_NEAR(rank.ring_s, 1, 1e-6);
  EXPECT_EQ(rank.other_s, 0);
  EXPECT_NEAR(rank.idle_s, 1, 1e-6);
  EXPECT_EQ(rank.sent_bytes, 100);
  EXPECT_NEAR(metrics.step_time[static_cast<size_t>(StepPhase::kDecode)].sum, 1, 1e-6);
}

TEST(Metrics, RequestsAreCountedByCode) {
  RequestCounts counts;
  counts.count(absl::StatusCode::kOk);
  counts.count(absl::StatusCode::kUnauthenticated);
  counts.count(static_cast<absl::StatusCode>(99));
  const auto read = counts.read();
  EXPECT_EQ(read[0], 1);
  EXPECT_EQ(read[2], 1);  // UNKNOWN
  EXPECT_EQ(read[16], 1);
}

}  // namespace
}  // namespace annulus::server
