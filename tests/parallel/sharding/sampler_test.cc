// SPDX-License-Identifier: Apache-2.0
#include "parallel/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "kernels/cpu/queue.h"
#include "plans.h"

namespace annulus::parallel {
namespace {

using testing::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SamplingParams at(float temperature, int32_t top_k = 0, float top_p = 1, float min_p = 0) {
  return {temperature, top_k, top_p, min_p, 17};
}

WantedResult answer(const std::vector<float>& logits, const SamplingParams& params, int32_t item,
                    const Wanted& wanted) {
  static kernels::CpuQueue queue(1);
  const auto vocab = static_cast<int32_t>(logits.size());
  const kernels::LogitWish wish = wish_of(params, wanted, vocab, 0);
  kernels::LogitAnswer found;
  std::vector<kernels::Candidate> top(static_cast<size_t>(wish.top));
  int32_t id = -1;
  kernels::sample(queue, {logits.data(), 1, 1, vocab}, {&wish, 1},
                  {&found, top.data(), wish.top, &id});
  EXPECT_EQ(id, found.token);
  return answer_of(found, top, vocab, item, wanted);
}
int32_t sample(const std::vector<float>& logits, const SamplingParams& params, int64_t position) {
  return answer(logits, params, 0, {position, true, -1, 0}).token;
}

// Known answers of the Random123 distribution (Salmon et al., SC 2011), philox4x32, 10 rounds.
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(
      philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
      (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformIsEven) {
  EXPECT_EQ(philox_uniform(3, 4), philox_uniform(3, 4));
  EXPECT_NE(philox_uniform(3, 4), philox_uniform(4, 3));
  EXPECT_NE(philox_uniform(1, uint64_t{1} << 32), philox_uniform(1, 0));
  EXPECT_NE(philox_uniform(uint64_t{1} << 32, 1), philox_uniform(0, 1));
  const int n = 64000;
  std::array<int, 64> bins{};
  for (int i = 0; i < n; ++i) {
    const double u = static_cast<double>(philox_uniform(99, static_cast<uint64_t>(i))) * 0x1p-64;
    ASSERT_TRUE(u >= 0 && u < 1);
    ++bins[static_cast<size_t>(u * 64)];
  }
  double chi2 = 0;
  for (const int b : bins) chi2 += (b - 1000.0) * (b - 1000.0) / 1000.0;
  EXPECT_LT(chi2, 103.4);  // 63 degrees of freedom, p = 0.001; the seed is fixed
}

TEST(Greedy, TiesGoToTheSmallerId) {
  const std::vector<float> logits = {1, 5, -2, 5, 5, 0, 5, 1, 1, 5};
  EXPECT_EQ(sample(logits, at(0), 3), 1);
  for (size_t n = 1; n < 70; ++n) {  // whole and ragged vector lengths
    std::vector<float> row(n, 2);
    EXPECT_EQ(sample(row, at(0), 0), 0);
    row[n - 1] = 2.5;
    EXPECT_EQ(sample(row, at(0), 0), static_cast<int32_t>(n - 1));
  }
}

// Against exact sums in long double; the polynomial is good to 1e-8, rounded weights
// to 1e-9, a float holds 6e-8 of 1.
TEST(Logprobs, AreOfTheUntemperedSoftmax) {
  Random random(1);
  for (const size_t n : {1u, 7u, 8u, 1000u, 49152u}) {
    std::vector<float> logits(n);
    for (float& x : logits) x = random.real() * 3;
    long double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<long double>(x));
    const auto lse = static_cast<double>(std::log(sum));
    Wanted wanted{5, true, static_cast<int32_t>(n / 2), 20, true};
    const WantedResult result = answer(logits, at(1.7f, 40, 0.9f), 3, wanted);
    const auto logprob = [&](int32_t id) {
      return static_cast<double>(logits[static_cast<size_t>(id)]) - lse;
    };
    EXPECT_EQ(result.item, 3);
    EXPECT_EQ(result.position, 5);
    const double tolerance = 1e-7 * 60;  // a float's rounding at the largest magnitude, 60
    EXPECT_NEAR(result.logprob, logprob(result.token), tolerance);
    EXPECT_NEAR(result.target_logprob, logprob(wanted.target), tolerance);
    ASSERT_EQ(result.top.size(), std::min<size_t>(20, n));
    std::vector<int32_t> ids(n);
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    for (size_t i = 0; i < result.top.size(); ++i) {
      EXPECT_EQ(result.top[i].id, ids[i]);
      EXPECT_NEAR(result.top[i].logprob, logprob(ids[i]), tolerance);
    }
  }
}

TEST(Answer, GivesOnlyWhatIsWanted) {
  const std::vector<float> logits = {0, 1, 2};
  const WantedResult nothing = answer(logits, at(0), 0, {7, false, -1, 0});
  EXPECT_EQ(nothing, (WantedResult{0, 7, -1, 0, 0, {}}));
  const WantedResult token = answer(logits, at(0), 0, {7, true, -1, 0});
  EXPECT_EQ(token, (WantedResult{0, 7, 2, 0, 0, {}}));
  const WantedResult far = answer(logits, at(0), 0, {7, false, 3, kMaxTop});
  EXPECT_EQ(far.target_logprob, -kInf);
  EXPECT_EQ(far.top.size(), 3u);
}

TEST(Answer, TopTiesGoToSmallerIds) {
  std::vector<float> logits(5000, 1);
  logits[4000] = 2;
  const WantedResult result = answer(logits, at(0), 0, {0, false, -1, 4});
  ASSERT_EQ(result.top.size(), 4u);
  const std::vector<int32_t> expected = {4000, 0, 1, 2};
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(result.top[i].id, expected[i]);
}

// Ascending logits are the worst order for the selection of the best.
TEST(Answer, TopOfAscendingLogits) {
  std::vector<float> logits(40000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i / 2);
  const WantedResult result = answer(logits, at(0), 0, {0, false, -1, 128});
  for (int32_t i = 0; i < 128; ++i) {
    EXPECT_EQ(result.top[static_cast<size_t>(i)].id, 39998 - i / 2 * 2 + i % 2);
  }
}

std::set<int32_t> reachable(const std::vector<float>& logits, const SamplingParams& params) {
  std::set<int32_t> ids;
  for (int64_t p = 0; p < 3000; ++p) ids.insert(sample(logits, params, p));
  return ids;
}

// Probabilities 0.4, 0.3, 0.2, 0.1 for ids 2, 0, 3, 1.
std::vector<float> four() {
  return {std::log(0.3f), std::log(0.1f), std::log(0.4f), std::log(0.2f)};
}

TEST(Filters, TopK) {
  EXPECT_EQ(reachable(four(), at(1, 0)), (std::set<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(reachable(four(), at(1, 1)), (std::set<int32_t>{2}));
  EXPECT_EQ(reachable(four(), at(1, 2)), (std::set<int32_t>{0, 2}));
  EXPECT_EQ(reachable(four(), at(1, 9)), (std::set<int32_t>{0, 1, 2, 3}));
  const std::vector<float> ties = {1, 1, 1, 1};
  EXPECT_EQ(reachable(ties, at(1, 2)), (std::set<int32_t>{0, 1}));
}

TEST(Filters, TopPKeepsTheFewestThatHoldIt) {
  EXPECT_EQ(reachable(four(), at(1, 0, 0.05f)), (std::set<int32_t>{2}));
  EXPECT_EQ(reachable(four(), at(1, 0, 0.39f)), (std::set<int32_t>{2}));
  EXPECT_EQ(reachable(four(), at(1, 0, 0.41f)), (std::set<int32_t>{0, 2}));
  EXPECT_EQ(reachable(four(), at(1, 0, 0.71f)), (std::set<int32_t>{0, 2, 3}));
  EXPECT_EQ(reachable(four(), at(1, 0, 0.95f)), (std::set<int32_t>{0, 1, 2, 3}));
}

// Top-k first: of what two candidates leave, 4/7 and 3/7, the first holds 0.57.
TEST(Filters, TopPIsOfWhatTopKLeft) {
  EXPECT_EQ(reachable(four(), at(1, 2, 0.55f)), (std::set<int32_t>{2}));
  EXPECT_EQ(reachable(four(), at(1, 0, 0.55f)), (std::set<int32_t>{0, 2}));
}

TEST(Filters, MinPIsRelativeToTheBest) {
  EXPECT_EQ(reachable(four(), at(1, 0, 1, 0.2f)), (std::set<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(reachable(four(), at(1, 0, 1, 0.3f)), (std::set<int32_t>{0, 2, 3}));
  EXPECT_EQ(reachable(four(), at(1, 0, 1, 0.6f)), (std::set<int32_t>{0, 2}));
  EXPECT_EQ(reachable(four(), at(1, 0, 1, 1.0f)), (std::set<int32_t>{2}));
  // Temperature comes first: at 0.5 the ratios are squared, 0.5625, 0.25, 0.0625.
  EXPECT_EQ(reachable(four(), at(0.5f, 0, 1, 0.3f)), (std::set<int32_t>{0, 2}));
}

// chi2 of `draws` samples against probabilities.
double chi_square(const std::vector<float>& logits, const SamplingParams& params,
                  const std::vector<double>& expected, int draws) {
  std::vector<int> hits(expected.size(), 0);
  for (int64_t p = 0; p < draws; ++p) {
    ++hits[static_cast<size_t>(sample(logits, params, p))];
  }
  double chi2 = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(hits[i], 0) << i;
      continue;
    }
    const double n = expected[i] * draws;
    chi2 += (hits[i] - n) * (hits[i] - n) / n;
  }
  return chi2;
}

// Bounds: chi-square at p = 0.001 for 3, 1 and 15 degrees of freedom; seeds are fixed.
TEST(Frequencies, FollowTheDistribution) {
  EXPECT_LT(chi_square(four(), at(1), {0.3, 0.1, 0.4, 0.2}, 20000), 16.27);
  EXPECT_LT(chi_square(four(), at(0.5f), {0.09 / 0.3, 0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3}, 20000),
            16.27);
  EXPECT_LT(chi_square(four(), at(1, 2), {3.0 / 7, 0, 4.0 / 7, 0}, 20000), 10.83);
  EXPECT_LT(chi_square(four(), at(1, 0, 0.6f), {3.0 / 7, 0, 4.0 / 7, 0}, 20000), 10.83);
  EXPECT_LT(chi_square(four(), at(1, 0, 1, 0.6f), {3.0 / 7, 0, 4.0 / 7, 0}, 20000), 10.83);
}

// A flat row of 3,000 needs candidates far beyond the first handful.
TEST(Frequencies, ReachTheTailOfAFlatRow) {
  const std::vector<float> flat(3200, 0.25f);
  std::vector<int> bins(16, 0);
  const int draws = 8000;
  for (int64_t p = 0; p < draws; ++p) {
    const int32_t token = sample(flat, at(2), p);
    ASSERT_TRUE(token >= 0 && token < 3200);
    ++bins[static_cast<size_t>(token / 200)];
  }
  double chi2 = 0;
  for (const int b : bins) chi2 += (b - draws / 16.0) * (b - draws / 16.0) / (draws / 16.0);
  EXPECT_LT(chi2, 37.7);
}

TEST(Sample, DependsOnSeedAndPositionOnly) {
  Random random(2);
  std::vector<float> logits(1000);
  for (float& x : logits) x = random.real();
  SamplingParams params = at(3);
  int differ_by_position = 0, differ_by_seed = 0;
  for (int64_t p = 0; p < 100; ++p) {
    const int32_t token = sample(logits, params, p);
    EXPECT_EQ(sample(logits, params, p), token);
    EXPECT_EQ(answer(logits, params, 1, {p, true, 2, 5}).token, token);
    differ_by_position += sample(logits, params, p + 1) != token;
    SamplingParams other = params;
    ++other.seed;
    differ_by_seed += sample(logits, other, p) != token;
  }
  EXPECT_GT(differ_by_position, 50);
  EXPECT_GT(differ_by_seed, 50);
}

TEST(BadLogits, NeverCrashAndNanNeverWins) {
  const std::vector<SamplingParams> all = {at(0),      at(1),     at(1, 2),          at(1, 0, 0.5f),
                                           at(1e-30f), at(1e30f), at(1, 0, 1, 0.5f), at(kNan),
                                           at(-1)};
  const std::vector<std::vector<float>> rows = {{kNan, 1, kNan, 2},
                                                {kNan, kNan},
                                                {-kInf, -kInf, -kInf},
                                                {1, kInf, kNan, kInf},
                                                {-kInf, 3, -kInf},
                                                {kInf},
                                                {kNan},
                                                {-3e38f, 3e38f},
                                                {3e38f, 3e38f, -kInf}};
  for (const auto& row : rows) {
    const bool any = std::any_of(row.begin(), row.end(), [](float x) { return !std::isnan(x); });
    for (const SamplingParams& params : all) {
      for (int64_t p = 0; p < 50; ++p) {
        const WantedResult result = answer(row, params, 0, {p, true, 0, 4, true});
        ASSERT_TRUE(result.token >= 0 && result.token < static_cast<int32_t>(row.size()));
        ASSERT_FALSE(std::isnan(result.logprob));
        ASSERT_FALSE(std::isnan(result.target_logprob));
        ASSERT_LE(result.logprob, 0);
        if (any) {
          ASSERT_FALSE(std::isnan(row[static_cast<size_t>(result.token)]));
        }
        for (const TopLogprob& top : result.top) ASSERT_FALSE(std::isnan(top.logprob));
      }
    }
  }
  EXPECT_EQ(sample(rows[0], at(0), 0), 3);
  EXPECT_EQ(sample(rows[3], at(0), 0), 1);
  EXPECT_EQ(reachable(rows[3], at(1)), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(reachable(rows[4], at(5)), (std::set<int32_t>{1}));
  EXPECT_NEAR(answer(rows[3], at(0), 0, {0, true, -1, 0, true}).logprob, std::log(0.5), 1e-6);
}

// No draw sorts the vocabulary: the yardstick is a sort of it by the same build on the same machine
// at the same load. Measured 330 us greedy, 500 to 1,600 us sampled, 22 ms for the sort.
TEST(Speed, LargeVocabularyIsNotSorted) {
  Random random(3);
  std::vector<float> logits(128256);
  for (float& x : logits) x = random.real();
  const auto best_us = [](const auto& work) {
    double best = 1e12;
    for (int64_t i = 0; i < 20; ++i) {
      const auto start = std::chrono::steady_clock::now();
      work(i);
      const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - start;
      best = std::min(best, us.count());
    }
    return best;
  };
  const double sort_us = best_us([&](int64_t) {
    std::vector<std::pair<float, int32_t>> all;
    for (const float x : logits) all.emplace_back(-x, static_cast<int32_t>(all.size()));
    std::sort(all.begin(), all.end());
    ASSERT_LE(all.front().first, all.back().first);
  });
  for (const SamplingParams& params : {at(0), at(0.8f, 40), at(0.5f, 0, 0.9f), at(0.5f)}) {
    const double us = best_us([&](int64_t i) { (void)sample(logits, params, i); });
    EXPECT_LT(us, params.temperature == 0 ? sort_us / 4 : sort_us);
    std::printf("temperature %.1f top_k %d top_p %.1f: %.0f us, a sort %.0f us\n",
                double{params.temperature}, params.top_k, double{params.top_p}, us, sort_us);
  }
}

}  // namespace
}  // namespace annulus::parallel
