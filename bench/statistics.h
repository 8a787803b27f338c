// SPDX-License-Identifier: Apache-2.0
// Statistics of small samples and the arrivals of a load. Pure; any thread. Percentiles interpolate
// between neighbours as numpy's do, so that a plotting script that reads the samples finds the same
// numbers. An empty sample gives 0.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace annulus::bench {

double percentile(std::vector<double> values, double percent);  // percent in [0, 100]
inline double median(std::vector<double> values) {
  return percentile(std::move(values), 50);
}
double mean(std::span<const double> values);
double deviation(std::span<const double> values);  // of the population

// A median with the order statistics that enclose the true one in at least 95 % of cases (from 6
// samples on; the extremes below).
struct MedianInterval {
  double low = 0, median = 0, high = 0;
  bool overlaps(const MedianInterval& other) const {
    return low <= other.high && other.low <= high;
  }
};
MedianInterval median_interval(std::vector<double> samples);

// Seconds from the start at which n requests arrive, ascending: a Poisson process of `rate` a
// second, the same for a seed on every machine. An infinite rate: all at 0.
std::vector<double> poisson_arrivals(int n, double rate, uint64_t seed);

// Whole numbers drawn evenly from [low, high].
std::vector<int> uniform_lengths(int n, int low, int high, uint64_t seed);

}  // namespace annulus::bench
