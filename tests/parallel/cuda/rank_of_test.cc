// SPDX-License-Identifier: Apache-2.0
// `annulus-gpu-bench rank-of` on the emulated GPU, in small: bf16 attention, F8 FFNs.
#include <gtest/gtest.h>

#include "bench/rank_of_run.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/queue.h"

namespace annulus::bench {
namespace {

TEST(CudaRankOf, SendsWhatItWouldSend) {
  RankOfOptions options;
  options.model = "synthetic:layers=3,dim=64,heads=2,kv_heads=2,head_dim=64,ffn=64,vocab=96-FP8";
  options.topology = {2, 3};
  options.cp_rank = 1;
  options.tokens = 48;  // even shares
  options.chunk_tokens = 30;
  options.rank.page_tokens = 16;
  options.decode_steps = 4;
  const auto report = run_rank_of(options, std::make_unique<kernels::CudaQueue>(0));
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->steps.size(), 2u);
  for (const RankOfStep& step : report->steps) {
    EXPECT_GT(step.formula_bytes, 0);
    EXPECT_EQ(step.cp.hop_bytes, step.formula_bytes);
    EXPECT_EQ(step.tp.sums, 6);
  }
  EXPECT_EQ(report->kv_rows, 16);
  ASSERT_EQ(report->decode.size(), 3u);
  EXPECT_EQ(report->decode[0].under_way, 1);
  EXPECT_GT(report->decode[0].gap_us, 700);  // of the emulated GPU: 1 ms where it was idle
  for (size_t i : {1, 2}) {
    EXPECT_EQ(report->decode[i].under_way, 2);
    EXPECT_LT(report->decode[i].gap_us, 300);
  }
  EXPECT_EQ(report->decode[1].replayed, 0);
  EXPECT_EQ(report->decode[2].replayed, options.decode_steps);
}

}  // namespace
}  // namespace annulus::bench
