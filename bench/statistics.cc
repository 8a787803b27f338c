// SPDX-License-Identifier: Apache-2.0
#include "bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace annulus::bench {
namespace {

// In [0, 1). std::uniform_real_distribution is another function in every library.
double uniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;
}

}  // namespace

double percentile(std::vector<double> values, double percent) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = std::clamp(percent, 0.0, 100.0) / 100 * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

double mean(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double deviation(std::span<const double> values) {
  const double middle = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - middle) * (value - middle);
  return values.empty() ? 0 : std::sqrt(squares / static_cast<double>(values.size()));
}

MedianInterval median_interval(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const size_t n = samples.size();
  // The k-th and the (n + 1 - k)-th smallest enclose the median unless fewer than k samples, of n
  // fair coins, fall on one side.
  size_t k = 0;
  double chance = std::pow(0.5, static_cast<double>(n)), below = chance;
  while (below <= 0.025 && k + 1 <= n / 2) {
    ++k;
    chance *= static_cast<double>(n - k + 1) / static_cast<double>(k);
    below += chance;
  }
  const size_t first = k > 0 ? k - 1 : 0;
  return {samples[first], median(samples), samples[n - 1 - first]};
}

std::vector<double> poisson_arrivals(int n, double rate, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<double> arrivals;
  arrivals.reserve(static_cast<size_t>(n));
  double now_s = 0;
  for (int i = 0; i < n; ++i) {
    if (std::isfinite(rate)) now_s -= std::log1p(-uniform(random)) / rate;
    arrivals.push_back(now_s);
  }
  return arrivals;
}

std::vector<int> uniform_lengths(int n, int low, int high, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int> lengths;
  lengths.reserve(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i)
    lengths.push_back(low + static_cast<int>(uniform(random) * (1.0 + high - low)));
  return lengths;
}

}  // namespace annulus::bench
