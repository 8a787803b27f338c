// SPDX-License-Identifier: Apache-2.0
// When does one rank differ from the others? Shared by `annulus doctor` (examination.h) and by the
// running server's watch for stragglers (stragglers.h), so that both mean the same by "slow": worse
// than the median of the ranks by more than kOutlier. The median of an even number of ranks is the
// mean of the middle two. Of two ranks, therefore, the worse one is named only from about a quarter
// behind the other (0.85 / 1.15): there is no majority that says which of them is as it should be,
// and 15 % between two of them is what neighbours of a shared machine do to one another. Pure; any
// thread.
#pragma once

#include <algorithm>
#include <vector>

namespace annulus::server {

inline constexpr double kOutlier = 0.15;

// Of values between which there is an order (no NaN); 0 of none.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace annulus::server
