// SPDX-License-Identifier: Apache-2.0
// One item and one step: who owns what.
#include "parallel/sharding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "plans.h"

namespace annulus::parallel {
namespace {

using testing::admit;
using testing::item_of;
using testing::op_of;
using testing::plan_of;
using testing::state_of;

// Every length and ring, from several starts: chunks in order without a gap, sizes within one, the
// first ones longer; rows of ranks within one.
TEST(Zigzag, EvenChunksPairedFromBothEnds) {
  for (int32_t n = 1; n <= 8; ++n) {
    for (const int64_t first : {int64_t{0}, int64_t{7}, int64_t{1} << 20}) {
      for (int64_t total = 0; total <= 64; ++total) {
        std::vector<Span> chunks(static_cast<size_t>(2 * n));
        int64_t fewest = total, most = 0;
        for (int32_t r = 0; r < n; ++r) {
          const auto [low, high] = zigzag(first, total, r, n);
          chunks[static_cast<size_t>(r)] = low;
          chunks[static_cast<size_t>(2 * n - 1 - r)] = high;
          fewest = std::min<int64_t>(fewest, low.count + high.count);
          most = std::max<int64_t>(most, low.count + high.count);
        }
        int64_t next = first;
        for (size_t c = 0; c < chunks.size(); ++c) {
          ASSERT_EQ(chunks[c].first, next) << n << " ranks, " << total << " rows, chunk " << c;
          ASSERT_EQ(chunks[c].stride, 1);
          ASSERT_LE(chunks[c].count, chunks[0].count);
          ASSERT_GE(chunks[c].count, chunks[0].count - 1);
          if (c > 0) {
            ASSERT_LE(chunks[c].count, chunks[c - 1].count);
          }
          next += chunks[c].count;
        }
        ASSERT_EQ(next, first + total);
        ASSERT_LE(most - fewest, 1) << n << " ranks, " << total << " rows";
      }
    }
  }
}

// Chunks i and 2N-1-i of equal size have the same sum of positions, so work differs only by the
// remainder: a rank has at most one row more (it sees at most all keys), and its chunks begin at
// most 2N-1 positions later in all (q rows each, 2N q <= total). Together at most 2 * total, beside
// a mean of total^2 / 2N.
TEST(Zigzag, CausalWorkIsBalanced) {
  for (int32_t n = 1; n <= 8; ++n) {
    for (int64_t total = 1; total <= 300; ++total) {
      int64_t least = INT64_MAX, most = 0;
      for (int32_t r = 0; r < n; ++r) {
        int64_t work = 0;
        for (const Span& span : zigzag(0, total, r, n)) {
          for (int64_t p = span.first; p < span.first + span.count; ++p) work += p + 1;
        }
        least = std::min(least, work);
        most = std::max(most, work);
      }
      if (total % (2 * n) == 0) {
        ASSERT_EQ(most, least) << n << " ranks, " << total;
      }
      ASSERT_LE(most - least, 2 * total) << n << " ranks, " << total;
    }
  }
}

TEST(DecodeOwner, GoesRoundRobinFromTheBase) {
  EXPECT_EQ(decode_owner(0, 0, 3), 0);
  EXPECT_EQ(decode_owner(2, 0, 3), 2);
  EXPECT_EQ(decode_owner(2, 1, 3), 0);
  EXPECT_EQ(decode_owner(1, (int64_t{1} << 31) - 2, 4), 3);
}

// shard_item, owner and tokens_of agree, and every position has one owner; for both placements,
// one chunk and several, whatever was cached before.
TEST(ShardItem, PartitionsEveryItem) {
  for (int32_t n = 1; n <= 8; ++n) {
    for (const Placement placement : {Placement::kPrompt, Placement::kDecode}) {
      for (int32_t total = 1; total <= 64; ++total) {
        for (const int32_t chunks : {1, 2, 5}) {
          if (chunks > total) continue;
          ShardState state = state_of(n);
          const int64_t cached = total % 3 * 5;
          apply_ops(state, plan_of(state, {admit(4, total % n)}, {}));
          Item item = item_of(4, cached, total, placement);
          item.spans.clear();
          for (int32_t c = 0, first = 0; c < chunks; ++c) {
            const int32_t end = total * (c + 1) / chunks;
            item.spans.push_back({cached + first, end - first, 1});
            first = end;
          }
          const auto ranks = shard_item(state, item);
          ASSERT_EQ(ranks.size(), static_cast<size_t>(n));
          std::vector<int> owners(static_cast<size_t>(total), -1);
          for (int32_t r = 0; r < n; ++r) {
            const auto rows = positions(ranks[static_cast<size_t>(r)]);
            ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end()));
            ASSERT_EQ(count(ranks[static_cast<size_t>(r)]), static_cast<int64_t>(rows.size()));
            ASSERT_EQ(tokens_of(state, item, r), rows);  // tokens are positions here
            for (const int32_t p : rows) {
              int& owner_here = owners[static_cast<size_t>(p - cached)];
              ASSERT_EQ(owner_here, -1) << "position " << p << " twice";
              owner_here = r;
              ASSERT_EQ(owner(state, item, p), r);
            }
          }
          ASSERT_EQ(std::count(owners.begin(), owners.end(), -1), 0);
        }
      }
    }
  }
}

TEST(PlanForRank, CutsTokensAndNothingElse) {
  ShardState state = state_of(3);
  StepPlan plan = plan_of(state, {admit(0), admit(1, 2)},
                          {item_of(0, 0, 10), item_of(1, 0, 5, Placement::kDecode)});
  plan.items[0].wanted = {{9, true, 4, 3}};
  ASSERT_TRUE(validate(state, plan).ok());
  ShardState ready = state;
  apply_ops(ready, plan);
  size_t tokens = 0;
  for (int32_t r = 0; r < 3; ++r) {
    const auto sent = decode_plan(encode(plan_for_rank(ready, plan, r)));
    ASSERT_TRUE(sent.ok());
    EXPECT_TRUE(validate(state, *sent, r).ok()) << validate(state, *sent, r);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(static_cast<int64_t>(sent->items[i].tokens.size()),
                count(shard_item(ready, plan.items[i])[static_cast<size_t>(r)]));
      tokens += sent->items[i].tokens.size();
    }
    EXPECT_EQ(advance(state, *sent), advance(state, plan)) << "ranks fold what they were sent";
    StepPlan restored = *sent;
    for (size_t i = 0; i < 2; ++i) restored.items[i].tokens = plan.items[i].tokens;
    EXPECT_EQ(restored, plan);
  }
  EXPECT_EQ(tokens, 15u);
}

TEST(PlanForRank, SampledItemsCarryNoTokens) {
  ShardState state = state_of(2);
  state = advance(state, plan_of(state, {admit(0)}, {item_of(0, 0, 6)}));
  StepPlan plan = plan_of(state, {}, {item_of(0, 6, 1, Placement::kDecode)});
  plan.items[0].tokens.clear();
  plan.items[0].sampled = {99, 0};
  ASSERT_TRUE(validate(state, plan).ok()) << validate(state, plan);
  for (int32_t r = 0; r < 2; ++r) {
    EXPECT_TRUE(plan_for_rank(state, plan, r).items[0].tokens.empty());
    EXPECT_TRUE(validate(state, plan, r).ok());
  }
}

TEST(Rows, OfAGroupAreSumsOverItsItems) {
  ShardState state = state_of(3);
  state = advance(state, plan_of(state, {admit(0), admit(1)}, {item_of(0, 0, 20)}));
  StepPlan plan = plan_of(state, {}, {item_of(0, 20, 7), item_of(1, 0, 4)});
  plan.groups = {{Variant::kPassQ, {0}}, {Variant::kPassKv, {1}}};
  const ShardState after = advance(state, plan);
  const auto sum = [](const std::vector<int64_t>& v) {
    return std::accumulate(v.begin(), v.end(), int64_t{0});
  };
  EXPECT_EQ(sum(q_rows(after, plan, plan.groups[0])), 7);
  EXPECT_EQ(sum(kv_rows(after, plan, plan.groups[0])), 27);
  // 4 rows in 6 chunks: ranks 0 to 2 take chunks (0, 5), (1, 4), (2, 3).
  EXPECT_EQ(q_rows(after, plan, plan.groups[1]), (std::vector<int64_t>{1, 1, 2}));
  EXPECT_EQ(kv_rows(after, plan, plan.groups[1]), (std::vector<int64_t>{1, 1, 2}));
}

TEST(Digest, FollowsEveryFieldButTokens) {
  ShardState state = state_of(2);
  StepPlan plan = plan_of(state, {admit(0)}, {item_of(0, 0, 6), item_of(1, 0, 6)});
  plan.ops.push_back(admit(1));
  plan.items[0].wanted = {{5, true, 1, 2}};
  plan.items[1].wanted = {{5, false, 1, 2}};
  const uint64_t digest = advance(state, plan).digest;
  StepPlan other = plan;
  other.items[0].tokens[3] = 77;
  EXPECT_EQ(advance(state, other).digest, digest);

  const std::vector<std::function<void(StepPlan&)>> changes = {
      [](StepPlan& p) { p.ops[0].sampling.temperature = 1; },
      [](StepPlan& p) { p.ops[0].sampling.top_k = 1; },
      [](StepPlan& p) { p.ops[0].sampling.top_p = 0.5f; },
      [](StepPlan& p) { p.ops[0].sampling.min_p = 0.5f; },
      [](StepPlan& p) { p.ops[0].sampling.seed = 1; },
      [](StepPlan& p) { p.ops[0].decode_base = 1; },
      [](StepPlan& p) { std::swap(p.ops[0], p.ops[1]); },
      [](StepPlan& p) { p.ops.push_back(op_of(Op::Kind::kSampling, 0)); },
      [](StepPlan& p) { p.items[0].placement = Placement::kDecode; },
      [](StepPlan& p) {
        p.items[0].spans = {{0, 2, 1}, {2, 4, 1}};
      },
      [](StepPlan& p) { p.items[0].wanted[0].sample = false; },
      [](StepPlan& p) { p.items[0].wanted[0].position = 4; },
      [](StepPlan& p) { p.items[0].wanted[0].target = -1; },
      [](StepPlan& p) { p.items[0].wanted[0].top = 0; },
      [](StepPlan& p) { p.items[0].wanted.clear(); },
      [](StepPlan& p) { std::swap(p.items[0], p.items[1]); },
      [](StepPlan& p) { p.groups[0].variant = Variant::kGatherQ; },
      [](StepPlan& p) { std::swap(p.groups[0].items[0], p.groups[0].items[1]); },
      [](StepPlan& p) {
        p.groups = {{Variant::kPassKv, {0}}, {Variant::kPassQ, {1}}};
      },
  };
  std::vector<uint64_t> digests = {digest};
  for (const auto& change : changes) {
    other = plan;
    change(other);
    digests.push_back(advance(state, other).digest);
  }
  std::sort(digests.begin(), digests.end());
  EXPECT_EQ(std::adjacent_find(digests.begin(), digests.end()), digests.end());
  ShardState later = state;
  later.digest = 1;
  EXPECT_NE(advance(later, plan).digest, digest) << "it rolls";
}

}  // namespace
}  // namespace annulus::parallel
