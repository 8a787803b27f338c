// SPDX-License-Identifier: Apache-2.0
// One rank without the others does what it does among them.
#include "bench/rank_of.h"

#include <gtest/gtest.h>

#include "bench/rank_of_run.h"
#include "kernels/cpu/queue.h"
#include "parallel/model/synthetic.h"

namespace annulus::bench {
namespace {

using kernels::Phase;
using parallel::Topology;
using parallel::Variant;

RankOfOptions small(Variant variant, int32_t cp_rank) {
  RankOfOptions options;
  options.model = "synthetic:layers=2,dim=64,heads=4,kv_heads=2,ffn=128,vocab=96";
  options.topology = {2, 3};
  options.cp_rank = cp_rank;
  options.tokens = 120;  // even shares: 48 and 24 are multiples of 6
  options.chunk_tokens = 48;
  options.variant = variant;
  options.rank.page_tokens = 16;
  return options;
}

RankOfReport run(const RankOfOptions& options) {
  return run_rank_of(options, std::make_unique<kernels::CpuQueue>(1, kernels::CpuIsa::kPortable))
      .value();
}

TEST(RankOf, SendsWhatItWouldSendAndHoldsItsShare) {
  for (const Variant variant : {Variant::kPassKv, Variant::kPassQ, Variant::kGatherQ}) {
    int64_t kv_rows = 0;
    double linear = 0, attend = 0;
    for (int32_t rank = 0; rank < 3; ++rank) {
      const RankOfReport report = run(small(variant, rank));
      ASSERT_EQ(report.steps.size(), 3u);
      kv_rows += report.kv_rows;
      for (const RankOfStep& step : report.steps) {
        // The owner of the last position tells both others the id.
        const int64_t ids = rank == 0 && &step == &report.steps.back() ? 2 * 4 : 0;
        EXPECT_EQ(step.cp.hop_bytes + step.cp.collective_bytes, step.formula_bytes + ids)
            << name(variant) << ", rank " << rank;
        // Twice a layer.
        EXPECT_EQ(step.tp.sums, 4);
        for (const Phase phase : {Phase::kQkv, Phase::kOutput, Phase::kGateUp, Phase::kDown})
          linear += step.demands[static_cast<size_t>(phase)].flop;
        attend += step.demands[static_cast<size_t>(Phase::kAttention)].flop;
        double us = 0;
        for (const double phase : step.phase_us) us += phase;
        EXPECT_GT(us, 0);
      }
    }
    EXPECT_EQ(kv_rows, 120);
    // By hand, a half of each layer: Q 32, K and V 16 each, output 32 x 64, three of 64 x 64.
    const double weights = 64 * (32 + 32) + 32 * 64 + 3 * 64 * 64;
    EXPECT_DOUBLE_EQ(linear, 2.0 * 120 * 2 * weights);
    // 120 * 121 / 2 pairs, 2 layers, 2 heads of 16, 4 FLOP a pair and column.
    EXPECT_DOUBLE_EQ(attend, 4.0 * 60 * 121 * 2 * 2 * 16);
  }
}

TEST(RankOf, LinksAreModelledFromTheMachineFile) {
  RankOfOptions options = small(Variant::kPassKv, 1);
  const RankOfReport report = run(options);
  const auto fast = model_links(options, report);
  ASSERT_TRUE(fast.ok()) << fast.status();
  EXPECT_GT(fast->sums, 0);
  EXPECT_GT(fast->hops, 0);
  EXPECT_EQ(fast->collectives, 0);
  options.variant = Variant::kPassQ;
  EXPECT_GT(model_links(options, run(options))->collectives, 0);
  options.machine = "h101";
  EXPECT_EQ(model_links(options, report).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RankOf, FlagsNameWhatIsWrong) {
  RankOfFlags flags;
  flags.options.cp_rank = 16;
  EXPECT_NE(flags.apply().message().find("--cp-rank 16"), absl::string_view::npos);
  flags.options.cp_rank = 0;
  flags.variant = "pass-v";
  EXPECT_NE(flags.apply().message().find("pass-v"), absl::string_view::npos);
  flags.variant = "pass-kv";
  flags.options.model = "406b";
  EXPECT_NE(flags.apply().message().find("synthetic:405B-FP8"), absl::string_view::npos);
  flags.options.model = "405b";
  flags.options.json = "/nowhere/x.jsonl";
  EXPECT_NE(flags.apply().message().find("/nowhere/x.jsonl"), absl::string_view::npos);
}

TEST(RankOf, AShapesNameAloneIsAGeneratedModel) {
  RankOfFlags flags;
  for (const auto& [given, model] : {std::pair{"405b", "synthetic:405B-FP8"},
                                     {"8b", "synthetic:8B"},
                                     {"405B-FP8", "synthetic:405B-FP8"},
                                     {"synthetic:405B", "synthetic:405B"}}) {
    flags.options.model = given;
    ASSERT_TRUE(flags.apply().ok()) << given;
    EXPECT_EQ(flags.options.model, model);
  }
}

TEST(RankOf, TheGoalIsOfOneShapeAndLength) {
  const auto shape = parallel::synthetic_config("405B", {}).value();
  RankOfOptions options;
  EXPECT_EQ(rank_of_goal(options, shape, 60, 0.7), "");
  options.tokens = 1000000;
  EXPECT_EQ(rank_of_goal(options, shape, 69.96, 0.7),
            "goal at 1,000,000 tokens: at most 70 s: met (70.0 s); at least 63 % of the measured "
            "peak: met (70.0 %)");
  EXPECT_NE(rank_of_goal(options, shape, 71, 0.6).find("63 % of the measured peak: MISSED"),
            std::string::npos);
  options.topology.cp = 8;
  EXPECT_EQ(rank_of_goal(options, shape, 60, 0.7), "");
}

}  // namespace
}  // namespace annulus::bench
