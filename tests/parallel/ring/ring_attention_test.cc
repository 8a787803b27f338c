// SPDX-License-Identifier: Apache-2.0
// The ring against full attention in double precision: several slots over several steps (prompt,
// chunk, decode, next turn), every variant, N = 1..4, with shards that are empty, uneven and paged.
// Keys, values and queries are functions of (slot, position), so that each rank makes its own and
// the oracle makes all.
#include "parallel/ring_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "kernels/cpu/queue.h"
#include "kernels/ops.h"
#include "kernels/reference/attention.h"
#include "parallel/comm_threads.h"
#include "tests/support/run_ranks.h"

namespace annulus::parallel {
namespace {

using kernels::CpuQueue;
using kernels::DType;
using kernels::matrix;

struct Heads {
  int32_t q, kv, dim;
};

float noise(int64_t a, int64_t b, int64_t c) {
  uint64_t x = static_cast<uint64_t>(a * 1000003 + b * 7919 + c * 104729 + 12345);
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<float>(static_cast<double>(x >> 11) * 0x1p-53 * 2 - 1);
}

// [positions, cols] of one slot; kind tells q, k and v apart.
std::vector<float> rows_of(int32_t slot, std::span<const int32_t> positions, int64_t cols,
                           int kind) {
  std::vector<float> out;
  for (const int32_t p : positions) {
    for (int64_t c = 0; c < cols; ++c) out.push_back(noise(slot * 4 + kind, p, c));
  }
  return out;
}

Item item(int32_t slot, int64_t first, int32_t count, Placement placement = Placement::kPrompt) {
  Item i;
  i.slot = slot;
  i.placement = placement;
  i.spans = {{first, count, 1}};
  i.tokens.assign(static_cast<size_t>(count), 1);
  return i;
}

StepPlan plan_of(Variant variant, std::vector<Op> ops, std::vector<Item> items) {
  StepPlan plan;
  plan.ops = std::move(ops);
  plan.items = std::move(items);
  Group group{variant, {}};
  for (size_t i = 0; i < plan.items.size(); ++i) group.items.push_back(static_cast<int32_t>(i));
  plan.groups = {group};
  return plan;
}

Op admit(int32_t slot, int32_t base) {
  Op op;
  op.slot = slot;
  op.decode_base = base;
  return op;
}

// A ragged first batch, a chunk behind cached tokens, decode of all, one more turn after a
// truncation.
std::vector<StepPlan> script(Variant variant, int32_t cp) {
  Op cut;
  cut.kind = Op::Kind::kTruncate;
  cut.slot = 0;
  cut.length = 50;
  return {
      plan_of(variant, {admit(0, 0), admit(1, 2 % cp), admit(2, 1 % cp)},
              {item(0, 0, 53), item(1, 0, 1), item(2, 0, 7)}),
      plan_of(variant, {}, {item(0, 53, 20), item(2, 7, 3)}),
      plan_of(variant, {},
              {item(0, 73, 1, Placement::kDecode), item(1, 1, 1, Placement::kDecode),
               item(2, 10, 1, Placement::kDecode)}),
      plan_of(variant, {},
              {item(0, 74, 1, Placement::kDecode), item(1, 2, 1, Placement::kDecode),
               item(2, 11, 1, Placement::kDecode)}),
      plan_of(variant, {cut}, {item(0, 50, 31), item(1, 3, 1, Placement::kDecode)}),
  };
}

class RingAttentionTest
    : public ::testing::TestWithParam<std::tuple<Variant, int32_t, Heads, DType, int64_t>> {};

TEST_P(RingAttentionTest, EqualsFullAttention) {
  const auto [variant, ranks, heads, dtype, workspace] = GetParam();
  const Topology topology{1, ranks};
  const PolicyInput policy{{heads.q, heads.kv, heads.dim, 1, dtype}, ranks, {}, workspace};
  const kernels::KvFormat format{dtype, heads.kv, heads.dim, 4};
  const int64_t q_cols = heads.q * heads.dim, kv_cols = heads.kv * heads.dim;
  const float scale = 1 / std::sqrt(static_cast<float>(heads.dim));
  ThreadWorld world(topology);

  annulus::testing::run_ranks(ranks, [&, variant = variant, ranks = ranks, heads = heads,
                                      dtype = dtype, workspace = workspace](int32_t me) {
    CpuQueue queue(1);
    const Groups<CpuQueue> groups = world.groups(me);
    KvStore<CpuQueue> store(queue, format, 1, 512);
    ShardState state;
    PositionLists lists;
    state.cp = topology.cp;
    int64_t step = 0;
    for (StepPlan plan : script(variant, topology.cp)) {
      plan.digest = state.digest;
      ASSERT_TRUE(validate(state, plan).ok()) << validate(state, plan).message();
      ShardState before = state;
      apply_ops(before, plan);
      for (const Op& op : plan.ops) {
        if (op.kind == Op::Kind::kAdmit) store.admit(op.slot);
        if (op.kind == Op::Kind::kTruncate) store.truncate(op.slot, op.length);
        lists.apply(op);
      }
      state = advance(state, plan);
      GroupLayout layout = layout_groups(state, plan, me, policy, lists).at(0);
      upload(queue, std::span(&layout, 1));

      std::vector<float> q32;
      for (const Item& i : plan.items) {
        const std::vector<int32_t> mine = positions(shard_item(before, i)[static_cast<size_t>(me)]);
        const int64_t n = static_cast<int64_t>(mine.size());
        const auto k = rows_of(i.slot, mine, kv_cols, 1), v = rows_of(i.slot, mine, kv_cols, 2);
        kernels::kv_append(queue, matrix(k.data(), n, kv_cols), matrix(v.data(), n, kv_cols),
                           store.layer(0), store.append(i.slot, mine), format);
        const auto q = rows_of(i.slot, mine, q_cols, 0);
        q32.insert(q32.end(), q.begin(), q.end());
      }
      const int64_t rows = layout.q_rows[static_cast<size_t>(me)];
      ASSERT_EQ(rows * q_cols, static_cast<int64_t>(q32.size()));
      std::vector<std::byte> q_bytes(q32.size() * static_cast<size_t>(kernels::size_bytes(dtype)));
      const kernels::Tensor q{q_bytes.data(), dtype, rows, q_cols, q_cols};
      kernels::convert(queue, q, matrix(static_cast<const float*>(q32.data()), rows, q_cols));
      std::vector<float> o(q32.size()), lse(static_cast<size_t>(rows * heads.q));
      AttentionCall<CpuQueue> call{*groups.cp, store, 0, scale, {step++, 0, 0, 0, ""}, 0};
      ring_attend(queue, layout, call, q, {o.data(), lse.data(), rows, heads.q, heads.dim});
      // pass-KV: own packed rows and two payloads; else what was asked for, or one row of every
      // rank.
      const int64_t kv_bytes =
          *std::max_element(layout.kv_rows.begin(), layout.kv_rows.end()) * format.row_bytes();
      const int64_t one_row =
          ranks * policy.shape.q_row_bytes() + 2 * (ranks - 1) * policy.shape.partial_row_bytes();
      EXPECT_LE(call.workspace_bytes,
                variant == Variant::kPassKv ? 3 * kv_bytes : std::max(workspace, one_row));

      int64_t row = 0;
      for (const Item& i : plan.items) {
        const std::vector<int32_t> mine = positions(shard_item(before, i)[static_cast<size_t>(me)]);
        if (mine.empty()) continue;
        std::vector<int32_t> all(static_cast<size_t>(state.slots.at(i.slot).length));
        for (size_t p = 0; p < all.size(); ++p) all[p] = static_cast<int32_t>(p);
        // The oracle reads what a cache of this dtype would hold.
        KvStore<CpuQueue> whole(queue, format, 1, 512);
        whole.admit(0);
        const int64_t n = static_cast<int64_t>(all.size());
        const auto k = rows_of(i.slot, all, kv_cols, 1), v = rows_of(i.slot, all, kv_cols, 2);
        kernels::kv_append(queue, matrix(k.data(), n, kv_cols), matrix(v.data(), n, kv_cols),
                           whole.layer(0), whole.append(0, all), format);
        const int32_t count = static_cast<int32_t>(mine.size());
        kernels::ReferencePartial want(count, heads.q, heads.dim);
        const kernels::Segment segment{0, count, mine.data(), whole.rows(0, 0)};
        kernels::reference_attend(q.slice_rows(row, count), {&segment, 1}, format, scale, want);
        // fp32: a few roundings of sums of |v| <= 1. bf16 caches: probabilities may be rounded to
        // bf16 (2^-9) in P V.
        const double tolerance = dtype == DType::kF32 ? 2e-6 : 6e-3;
        for (size_t e = 0; e < want.o.size(); ++e) {
          ASSERT_NEAR(o[static_cast<size_t>(row * q_cols) + e], want.o[e], tolerance)
              << "step " << step - 1 << " slot " << i.slot << " element " << e;
        }
        for (size_t e = 0; e < want.lse.size(); ++e) {
          ASSERT_NEAR(lse[static_cast<size_t>(row * heads.q) + e], want.lse[e],
                      dtype == DType::kF32 ? 2e-6 * 8 : 1e-3);
        }
        row += count;
      }
      EXPECT_EQ(row, rows);
    }
  });
}

std::string name_of(const ::testing::TestParamInfo<RingAttentionTest::ParamType>& info) {
  const auto& [variant, ranks, heads, dtype, workspace] = info.param;
  std::string v = name(variant);
  v.erase(std::remove(v.begin(), v.end(), '-'), v.end());
  return v + "_n" + std::to_string(ranks) + "_h" + std::to_string(heads.q) + "x" +
         std::to_string(heads.kv) + "_" + kernels::name(dtype) +
         (workspace < (1 << 20) ? "_blocks" : "");
}

INSTANTIATE_TEST_SUITE_P(All, RingAttentionTest,
                         ::testing::Combine(::testing::Values(Variant::kPassKv, Variant::kPassQ,
                                                              Variant::kGatherQ),
                                            ::testing::Values(1, 2, 3, 4),
                                            ::testing::Values(Heads{6, 2, 64}, Heads{2, 2, 32}),
                                            ::testing::Values(DType::kF32, DType::kBF16),
                                            ::testing::Values(int64_t{1} << 28, int64_t{1} << 13)),
                         name_of);

}  // namespace
}  // namespace annulus::parallel
