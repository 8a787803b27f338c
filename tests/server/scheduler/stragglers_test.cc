// SPDX-License-Identifier: Apache-2.0
#include "server/stragglers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "server/outliers.h"

namespace annulus::server {
namespace {

constexpr double kWindow = 1e6;  // us of computing in a usual one

// A window in which ranks took these times the usual one, with even work.
std::vector<RankWindow> even(const std::vector<double>& times) {
  std::vector<RankWindow> out;
  for (const double time : times) {
    out.push_back({.compute_us = time * kWindow, .rows = 1000, .logit_rows = 100, .kv_rows = 5000});
  }
  return out;
}

// Ranks named by this window; a rank that is cleared counts negative, less one.
std::vector<int> changes_of(Stragglers& stragglers, const std::vector<RankWindow>& window) {
  std::vector<int> out;
  for (const StragglerChange& change : stragglers.window(window)) {
    out.push_back(change.straggles ? change.rank : -1 - change.rank);
  }
  return out;
}

TEST(Stragglers, APersistentOneIsNamedAfterSomeWindowsAndClearedAfterAsMany) {
  Stragglers stragglers(4);
  for (int window = 1; window < kWindows; ++window) {
    EXPECT_TRUE(changes_of(stragglers, even({1, 1.02, 1.3, 0.98})).empty()) << window;
    EXPECT_FALSE(stragglers.straggles(2));
  }
  EXPECT_EQ(changes_of(stragglers, even({1, 1.02, 1.3, 0.98})), std::vector<int>{2});
  EXPECT_TRUE(stragglers.straggles(2));
  EXPECT_NEAR(stragglers.excess_of(2), 1.3 / 1.01 - 1, 1e-12);
  for (int window = 0; window < 20; ++window) {  // said once
    EXPECT_TRUE(changes_of(stragglers, even({1, 1.02, 1.3, 0.98})).empty());
  }
  for (int window = 1; window < kWindows; ++window) {
    EXPECT_TRUE(changes_of(stragglers, even({1, 1.02, 1.05, 0.98})).empty());
    EXPECT_TRUE(stragglers.straggles(2));
  }
  EXPECT_EQ(changes_of(stragglers, even({1, 1.02, 1.05, 0.98})), std::vector<int>{-3});
  EXPECT_FALSE(stragglers.straggles(2));
}

TEST(Stragglers, WhatDisturbsARankNowAndThenNamesNobody) {
  Stragglers stragglers(4);
  for (int window = 0; window < 100; ++window) {
    // Three times as long, in all windows but every fifth; at every rank in turn.
    std::vector<double> times(4, 1);
    if (window % kWindows != 0) times[static_cast<size_t>(window / kWindows % 4)] = 3;
    EXPECT_TRUE(changes_of(stragglers, even(times)).empty()) << window;
  }
}

TEST(Stragglers, NoiseOfFivePercentNamesNobodyInADay) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> noise(1, 0.05);
  Stragglers stragglers(8);
  for (int window = 0; window < 43200; ++window) {  // of two seconds
    std::vector<double> times;
    for (int rank = 0; rank < 8; ++rank) times.push_back(std::max(noise(random), 0.1));
    EXPECT_TRUE(changes_of(stragglers, even(times)).empty()) << window;
  }
}

TEST(Stragglers, BetweenTheTwoThresholdsNothingChanges) {
  Stragglers stragglers(3);
  for (int window = 0; window < 50; ++window) {
    EXPECT_TRUE(changes_of(stragglers, even({1, 1, 1.14})).empty());
  }
  for (int window = 0; window < kWindows; ++window) stragglers.window(even({1, 1, 1.2}));
  EXPECT_TRUE(stragglers.straggles(2));
  for (int window = 0; window < 50; ++window) {
    EXPECT_TRUE(changes_of(stragglers, even({1, 1, 1.11})).empty());
  }
  EXPECT_TRUE(stragglers.straggles(2));
}

// Rows that came to a rank, and KV that it holds, excuse time in their proportion.
TEST(Stragglers, MoreWorkIsNoReason) {
  for (const bool kv : {false, true}) {
    Stragglers stragglers(4);
    std::vector<RankWindow> uneven = even({1, 1, 1.9, 1});
    if (kv) {
      uneven[2].kv_rows *= 2;
    } else {
      uneven[2].rows *= 2;
    }
    for (int window = 0; window < 3 * kWindows; ++window) {
      EXPECT_TRUE(changes_of(stragglers, uneven).empty());
    }
    // Beyond that it does not help.
    uneven[2].compute_us = 2.4 * kWindow;
    for (int window = 1; window < kWindows; ++window) {
      EXPECT_TRUE(changes_of(stragglers, uneven).empty());
    }
    EXPECT_EQ(changes_of(stragglers, uneven), std::vector<int>{2});
  }
}

// The last rows of prompts are rank 0's, and with them the logits: much of short prompts, nothing
// of long ones.
TEST(Stragglers, LogitsOfPromptsAreRankZeros) {
  std::vector<RankWindow> prompts = even({1.3, 1, 1, 1});
  for (RankWindow& rank : prompts) rank.logit_rows = 0;
  prompts[0].logit_rows = 40;
  for (RankWindow& rank : prompts) rank.rows = 120;  // 40 prompts of 12 tokens
  EXPECT_LT(excess(prompts)[0], 0);
  EXPECT_EQ(excess(prompts)[1], 0);
  for (RankWindow& rank : prompts) rank.rows = 40000;
  EXPECT_GT(excess(prompts)[0], kOutlier);
}

TEST(Stragglers, OfTwoTheSlowerOneIsNamedFromAboutAQuarterBehind) {
  Stragglers close(2), far(2);
  for (int window = 0; window < 3 * kWindows; ++window) {
    EXPECT_TRUE(changes_of(close, even({1, 1.34})).empty());  // 1.34 / 1.17 = 1.145
    const std::vector<int> named = changes_of(far, even({1, 1.36}));
    EXPECT_EQ(named, window == kWindows - 1 ? std::vector<int>{1} : std::vector<int>{});
  }
}

TEST(Stragglers, OneRankAndRanksWithoutTimesAreNone) {
  EXPECT_EQ(excess(even({5})), std::vector<double>{0});
  EXPECT_EQ(excess(even({0, 0, 0})), std::vector<double>(3, 0));
  EXPECT_TRUE(excess({}).empty());
  std::vector<RankWindow> broken = even({1, 1, 9});
  broken[0].compute_us = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(excess(broken), std::vector<double>(3, 0));
}

}  // namespace
}  // namespace annulus::server
