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

// Known tables for the sign test: of 9 samples the 2nd and the 8th smallest enclose the median in
// 96.1 % of cases, of 15 the 4th and the 12th in 96.5 %, of 5 not even the extremes in 95 %.
TEST(Statistics, IntervalsOfAMedian) {
  const auto interval = [](int n) {
    std::vector<double> samples;
    for (int i = n; i >= 1; --i) samples.push_back(i);
    return median_interval(samples);
  };
  EXPECT_EQ(interval(9).low, 2);
  EXPECT_EQ(interval(9).median, 5);
  EXPECT_EQ(interval(9).high, 8);
  EXPECT_EQ(interval(15).low, 4);
  EXPECT_EQ(interval(15).high, 12);
  EXPECT_EQ(interval(5).low, 1);
  EXPECT_EQ(interval(5).high, 5);
  EXPECT_EQ(interval(1).low, 1);
  EXPECT_EQ(median_interval({}).median, 0);
  EXPECT_TRUE(interval(9).overlaps(interval(15)));
  EXPECT_FALSE(interval(9).overlaps({8.5, 9, 10}));
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
