// SPDX-License-Identifier: Apache-2.0
// What a step asks of a rank, against counts made another way, and the limit that is nearest.
#include "bench/step_ops.h"

#include <gtest/gtest.h>

namespace annulus::bench {
namespace {

using kernels::Phase;
using parallel::Variant;

constexpr parallel::Topology kTopology{2, 3};

parallel::LlamaConfig config() {
  parallel::LlamaConfig c;
  c.layers = 5, c.dim = 64, c.heads = 8, c.kv_heads = 4, c.head_dim = 16, c.ffn = 96, c.vocab = 300;
  return c;
}

parallel::PolicyInput policy() {
  parallel::PolicyInput input;
  input.shape = {.heads = 4, .kv_heads = 2, .head_dim = 16, .layers = 5};
  input.cp = kTopology.cp;
  return input;
}

const Demand& of(const StepDemands& demands, Phase phase) {
  return demands[static_cast<size_t>(phase)];
}

TEST(StepDemands, RanksTogetherMultiplyWhatTheModelDoes) {
  const StepWork work{.load = {30, 12}, .sequences = 2, .variant = Variant::kPassQ};
  const StepDemands demands = step_demands(config(), kTopology, policy(), {}, work);
  double linear = 0;
  for (const Phase p : {Phase::kQkv, Phase::kOutput, Phase::kGateUp, Phase::kDown})
    linear += of(demands, p).flop;
  // 60 rows, 5 layers of q, k and v, o, gate and up, down.
  const double weights = 64 * (128 + 2 * 64) + 128 * 64 + 64 * 2 * 96 + 96 * 64;
  EXPECT_DOUBLE_EQ(linear * 6, 2.0 * 60 * 5 * weights);
  EXPECT_DOUBLE_EQ(of(demands, Phase::kHead).flop * 6, 2.0 * 2 * 64 * 300);
  double pairs = 0;
  for (int q = 12; q < 42; ++q) pairs += q + 1;
  EXPECT_DOUBLE_EQ(of(demands, Phase::kAttention).flop * 6, 2 * pairs * 4 * 8 * 16 * 5);
  // K and V of 42 rows in two bytes, read once: by the ranks of a slice together.
  EXPECT_DOUBLE_EQ(of(demands, Phase::kAttention).bytes * 3, 2 * 42 * 2.0 * 2 * 16 * 2 * 5);
  // 20 rows a rank, o and lse of 4 heads, from two others.
  EXPECT_DOUBLE_EQ(returned_bytes(policy(), work), 20 * 2 * 4.0 * (16 + 1) * 4 * 5);
  EXPECT_DOUBLE_EQ(of(demands, Phase::kMerge).bytes, 3 * returned_bytes(policy(), work));
  EXPECT_EQ(of(demands, Phase::kWait).flop + of(demands, Phase::kWait).bytes, 0);
}

TEST(StepDemands, NothingReturnsInPassKv) {
  const StepWork work{.load = {30, 0}};
  EXPECT_EQ(returned_bytes(policy(), work), 0);
  EXPECT_EQ(of(step_demands(config(), kTopology, policy(), {}, work), Phase::kMerge).bytes, 0);
}

TEST(StepDemands, OfOneSequenceOneRankInThreeReadsTheHead) {
  const LinearBytes linear{.qkv = 100, .head = 600};
  const StepDemands one =
      step_demands(config(), kTopology, policy(), linear, {.load = {1, 8}, .sequences = 1});
  const StepDemands many =
      step_demands(config(), kTopology, policy(), linear, {.load = {1, 8}, .sequences = 6});
  EXPECT_DOUBLE_EQ(of(one, Phase::kHead).bytes, 200);
  EXPECT_DOUBLE_EQ(of(many, Phase::kHead).bytes, 600);
  EXPECT_DOUBLE_EQ(of(one, Phase::kQkv).bytes, 100);
}

TEST(Bound, TheNearestLimitCounts) {
  const Limits limits{
      .flops_per_us = 100, .read_bytes_per_us = 10, .link_bytes_per_us = 2, .link_latency_us = 3};
  const Bound multiply = bound(limits, {.flop = 1000, .bytes = 50, .sent_bytes = 2});
  EXPECT_DOUBLE_EQ(multiply.us, 10);
  EXPECT_EQ(multiply.by, Resource::kMultiply);
  const Bound memory = bound(limits, {.flop = 1000, .bytes = 200});
  EXPECT_DOUBLE_EQ(memory.us, 20);
  EXPECT_EQ(memory.by, Resource::kMemory);
  const Bound link = bound(limits, {.flop = 1000, .sent_bytes = 8, .messages = 4});
  EXPECT_DOUBLE_EQ(link.us, 16);
  EXPECT_EQ(link.by, Resource::kLink);
  EXPECT_EQ(bound(limits, {}).us, 0);
}

TEST(RingDemand, CountsTheMessagesThatWaitForEachOther) {
  const auto messages = [](Variant variant, int32_t cp) {
    parallel::PolicyInput input = policy();
    input.cp = cp;
    return ring_demand(input, {30, 12}, variant, 100).messages;
  };
  EXPECT_EQ(messages(Variant::kPassKv, 4), 5 * 3);
  EXPECT_EQ(messages(Variant::kPassQ, 4), 5 * (3 + 1));
  EXPECT_EQ(messages(Variant::kGatherQ, 4), 5 * 2);
  for (const Variant v : {Variant::kPassKv, Variant::kPassQ, Variant::kGatherQ})
    EXPECT_EQ(messages(v, 1), 0);
  EXPECT_EQ(ring_demand(policy(), {30, 12}, Variant::kPassQ, 100).flop,
            attention_demand(policy(), {30, 12}).flop);
}

}  // namespace
}  // namespace annulus::bench
