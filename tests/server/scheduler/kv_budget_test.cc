// SPDX-License-Identifier: Apache-2.0
#include "server/kv_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "parallel/sharding.h"

namespace annulus::server {
namespace {

// The bound holds for any rank against the real sharding, for every way of cutting that it covers.
TEST(KvBudget, BoundsTheRealSharding) {
  std::mt19937_64 random(7);
  for (int trial = 0; trial < 3000; ++trial) {
    const auto cp = static_cast<int32_t>(1 + random() % 5);
    const auto chunk = static_cast<int32_t>(random() % 3 == 0 ? 0 : 1 + random() % 40);
    const auto first = static_cast<int64_t>(random() % 100);
    const auto end = first + static_cast<int64_t>(random() % 200);
    const auto decoded = static_cast<int64_t>(random() % 30);
    std::vector<int64_t> rows(static_cast<size_t>(cp), 0);
    for (int64_t at = first; at < end;) {
      const int64_t even = 2 * int64_t{cp};
      const int64_t unit = chunk > 0 ? chunk : even * static_cast<int64_t>(1 + random() % 5);
      const int64_t to = std::min(end, (at / unit + 1) * unit);
      for (int32_t r = 0; r < cp; ++r) {
        for (const parallel::Span& span : parallel::zigzag(at, to - at, r, cp)) {
          rows[static_cast<size_t>(r)] += span.count;
        }
      }
      at = to;
    }
    const auto base = static_cast<int32_t>(random() % static_cast<uint64_t>(cp));
    for (int64_t p = end; p < end + decoded; ++p) {
      ++rows[static_cast<size_t>(parallel::decode_owner(base, p, cp))];
    }
    const int64_t bound = rows_bound(first, end, decoded, cp, chunk);
    const int64_t most = *std::max_element(rows.begin(), rows.end());
    EXPECT_LE(most, bound) << "cp " << cp << " chunk " << chunk;
    if (chunk == 0) {
      EXPECT_LE(bound, (end - first + decoded) / cp + 4);
    }
  }
}

TEST(KvBudget, RowsBelowCountsStridedSpans) {
  const std::vector<parallel::Span> storage = {{0, 4, 1}, {10, 5, 3}};  // 0..3, 10 13 16 19 22
  EXPECT_EQ(rows_below(storage, 0), 0);
  EXPECT_EQ(rows_below(storage, 3), 3);
  EXPECT_EQ(rows_below(storage, 10), 4);
  EXPECT_EQ(rows_below(storage, 14), 6);
  EXPECT_EQ(rows_below(storage, 22), 8);
  EXPECT_EQ(rows_below(storage, 1000), 9);
}

TEST(KvBudget, MostAnswerTokensIsTheLargestThatFits) {
  for (int32_t cp = 1; cp <= 4; ++cp) {
    for (int32_t chunk : {0, 5, 16}) {
      for (int64_t prompt : {1, 17, 100}) {
        const int64_t most = most_answer_tokens(prompt, cp, chunk, 130, 16);
        if (most < 1) continue;
        EXPECT_LE(round_to_pages(rows_bound(0, prompt, most - 1, cp, chunk), 16), 130);
        EXPECT_GT(round_to_pages(rows_bound(0, prompt, most, cp, chunk), 16), 130);
      }
    }
  }
  EXPECT_LT(most_answer_tokens(200, 1, 0, 130, 16), 1);
}

}  // namespace
}  // namespace annulus::server
