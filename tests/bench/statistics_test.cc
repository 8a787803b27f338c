// SPDX-License-Identifier: Apache-2.0
#include "bench/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace annulus::bench {
namespace {

TEST(Statistics, PercentilesInterpolateAsNumpyDoes) {
  // numpy.percentile([4, 1, 3, 2], [0, 25, 50, 95, 100]) and of a single value.
  const std::vector<double> values = {4, 1, 3, 2};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 25), 1.75);
  EXPECT_DOUBLE_EQ(percentile(values, 50), 2.5);
  EXPECT_DOUBLE_EQ(percentile(values, 95), 3.85);
  EXPECT_DOUBLE_EQ(percentile(values, 100), 4);
  EXPECT_DOUBLE_EQ(percentile({7}, 99), 7);
  EXPECT_DOUBLE_EQ(percentile({}, 50), 0);
}

TEST(Statistics, MeanAndDeviationOfThePopulation) {
  const std::vector<double> values = {2, 4, 4, 4, 5, 5, 7, 9};
  EXPECT_DOUBLE_EQ(mean(values), 5);
  EXPECT_DOUBLE_EQ(deviation(values), 2);
  EXPECT_DOUBLE_EQ(mean({}), 0);
  EXPECT_DOUBLE_EQ(deviation({}), 0);
}

TEST(Statistics, PoissonArrivalsHaveExponentialGaps) {
  constexpr int kCount = 20000;
  constexpr double kRate = 8;
  const std::vector<double> arrivals = poisson_arrivals(kCount, kRate, 1);
  ASSERT_EQ(arrivals.size(), static_cast<size_t>(kCount));
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  std::vector<double> gaps = {arrivals[0]};
  for (size_t i = 1; i < arrivals.size(); ++i) gaps.push_back(arrivals[i] - arrivals[i - 1]);
  // Mean and deviation of an exponential distribution are 1 / rate; of 20,000 draws each is off by
  // 0.7 % and 1 % (one sigma).
  EXPECT_NEAR(mean(gaps), 1 / kRate, 0.03 / kRate);
  EXPECT_NEAR(deviation(gaps), 1 / kRate, 0.05 / kRate);
  EXPECT_NEAR(percentile(gaps, 50), std::log(2) / kRate, 0.05 / kRate);
}

TEST(Statistics, ArrivalsFollowTheSeed) {
  EXPECT_EQ(poisson_arrivals(50, 3, 7), poisson_arrivals(50, 3, 7));
  EXPECT_NE(poisson_arrivals(50, 3, 7), poisson_arrivals(50, 3, 8));
  const std::vector<double> at_once(5, 0.0);
  EXPECT_EQ(poisson_arrivals(5, std::numeric_limits<double>::infinity(), 7), at_once);
}

TEST(Statistics, LengthsFillTheirRange) {
  const std::vector<int> lengths = uniform_lengths(2000, 3, 7, 1);
  EXPECT_EQ(*std::min_element(lengths.begin(), lengths.end()), 3);
  EXPECT_EQ(*std::max_element(lengths.begin(), lengths.end()), 7);
  EXPECT_EQ(uniform_lengths(3, 9, 9, 1), std::vector<int>(3, 9));
}

}  // namespace
}  // namespace annulus::bench
