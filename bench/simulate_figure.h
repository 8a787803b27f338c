// SPDX-License-Identifier: Apache-2.0
// A log-log figure as SVG: seconds over GPUs, a line a series, a dashed one for perfect scaling
// from its first point. PURE.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace annulus::bench {

struct Series {
  std::string label;
  std::vector<std::pair<double, double>> points;  // GPUs, seconds; ascending, above 0
};

std::string scaling_svg(const std::string& title, const std::vector<Series>& series);

}  // namespace annulus::bench
