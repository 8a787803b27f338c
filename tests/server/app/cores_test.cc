// SPDX-License-Identifier: Apache-2.0
#include "server/app/cores.h"

#include <gtest/gtest.h>

#include <cmath>

namespace annulus::server {
namespace {

TEST(Cores, RanksShareTheCores) {
  EXPECT_EQ(default_threads(1, 8), 8);
  EXPECT_EQ(default_threads(3, 8), 2);
  EXPECT_EQ(default_threads(4, 2), 1);
}

TEST(Cores, RanksArePinnedWhereEachThreadHasACore) {
  using Cores = std::vector<std::vector<int>>;
  EXPECT_EQ(cores_of_ranks(2, 2, {0, 1, 4, 5, 6}), (Cores{{0, 1}, {4, 5}}));
  EXPECT_EQ(cores_of_ranks(3, 1, {0, 1}), (Cores{{}, {}, {}}));
}

TEST(Cores, ThisProcessHasACore) {
  EXPECT_FALSE(allowed_cores().empty());
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), std::ssize(allowed_cores()));
}

TEST(Cores, AQuotaIsTimeAPeriod) {
  EXPECT_EQ(quota_of("400000 100000\n"), 4);
  EXPECT_EQ(quota_of("50000 100000\n"), 0.5);
  for (const char* none : {"max 100000\n", "", "max\n", "-1 100000\n", "100000 0\n", "1 2 3\n"}) {
    EXPECT_TRUE(std::isinf(quota_of(none))) << none;
  }
}

}  // namespace
}  // namespace annulus::server
