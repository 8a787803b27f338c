// SPDX-License-Identifier: Apache-2.0
// How often decode's attention asks for other grids or addresses than a graph has, by arithmetic.
#include "kernels/cuda/attention_work.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/core/math.h"

namespace annulus::kernels {
namespace {

// Those of a rank of CP8 while `batch` sequences decode, whose owners go round while pinned memory
// has two turns: steps from the 33rd on that no graph does. 16 heads of a KV head, as 405B at TP8.
int64_t captures(int32_t batch, int32_t context, int32_t steps,
                 const std::function<void(WorkPlan&)>& round) {
  constexpr int32_t kCp = 8, kWarmUp = 32;
  std::set<std::tuple<int32_t, int32_t, int64_t, int64_t, int64_t, int32_t>> graphs;
  int64_t out = 0;
  for (int32_t step = 0; step < kWarmUp + steps; ++step) {
    std::vector<Segment> segments;
    for (int32_t s = 0; s < batch; ++s) {
      Segment& segment = segments.emplace_back();
      segment.q_count = 1;
      segment.kv.count = (context + 37 * s + step) / kCp;
    }
    WorkPlan plan = cut_work(segments, {DType::kBF16, 1, 128, 64}, 16, {16, 64, 264}, 0);
    round(plan);
    const bool is_new = graphs
                            .emplace(step % kCp, (step + step / kCp) % 2, plan.blocks, plan.pairs,
                                     plan.cells, plan.longest_split)
                            .second;
    if (is_new && step >= kWarmUp) ++out;
  }
  return out;
}

TEST(AttentionWork, DecodeOutgrowsItsGraphsSeldom) {
  // At worst one size is outgrown in 200 steps: each of eight owners and two turns captures once.
  for (const int32_t batch : {1, 2, 4, 8, 16, 64}) {
    for (const int32_t context : {500, 1000, 2000, 4000, 8000, 16000})
      EXPECT_LE(captures(batch, context, 200, round_up), 16) << batch << " of " << context;
  }
  // From 500 to 4,000 tokens: 30 to 160 times. By eighths alone, as all once were: 220 to 490.
  const auto by_eighths = [](WorkPlan& plan) {
    for (int64_t* n : {&plan.blocks, &plan.pairs, &plan.cells}) {
      int64_t step = 1;
      while (16 * step <= *n) step *= 2;
      *n = ceil_div(*n, step) * step;
    }
  };
  for (const int32_t batch : {1, 2, 4, 8, 16, 64}) {
    EXPECT_LT(2 * captures(batch, 500, 3500, round_up), captures(batch, 500, 3500, by_eighths))
        << batch;
  }
}

TEST(AttentionWork, IsRoundedUpWithinBounds) {
  for (int64_t n = 0; n < 10000; n = n < 300 ? n + 1 : n * 9 / 8 + 1) {
    WorkPlan plan;
    plan.blocks = plan.pairs = plan.cells = n;
    round_up(plan);
    for (const auto& [got, doubled] :
         {std::pair<int64_t, int64_t>{plan.blocks, 256}, {plan.pairs, 1024}, {plan.cells, 4096}}) {
      EXPECT_GE(got, n);
      EXPECT_LE(got, n <= doubled ? std::max<int64_t>(2 * n - 1, n) : n * 9 / 8) << n;
    }
  }
}

}  // namespace
}  // namespace annulus::kernels
