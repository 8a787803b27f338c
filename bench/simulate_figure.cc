// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_figure.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace annulus::bench {
namespace {

constexpr double kWidth = 720, kHeight = 440, kLeft = 70, kRight = 150, kTop = 40, kBottom = 50;
constexpr const char* kColors[] = {"#1b6ca8", "#c8553d", "#4a8f5c", "#7a5ea8"};

}  // namespace

std::string scaling_svg(const std::string& title, const std::vector<Series>& series) {
  double x0 = 1e300, x1 = 0, y0 = 1e300, y1 = 0;
  for (const Series& s : series) {
    for (const auto& [x, y] : s.points) {
      x0 = std::min(x0, x);
      x1 = std::max(x1, x);
      y0 = std::min(y0, y);
      y1 = std::max(y1, y);
    }
  }
  y0 = std::pow(10, std::floor(std::log10(y0)));
  y1 = std::pow(10, std::ceil(std::log10(y1)));
  const auto at_x = [&](double x) {
    return kLeft + (kWidth - kLeft - kRight) * std::log(x / x0) / std::log(std::max(x1 / x0, 2.0));
  };
  const auto at_y = [&](double y) {
    return kHeight - kBottom -
           (kHeight - kTop - kBottom) * std::log(y / y0) / std::log(std::max(y1 / y0, 10.0));
  };
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
      "<text x=\"%.0f\" y=\"22\" font-size=\"14\">%s</text>\n",
      kWidth, kHeight, kLeft, title);
  const auto line = [&](double xa, double ya, double xb, double yb, const char* style) {
    absl::StrAppendFormat(&svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", xa,
                          ya, xb, yb, style);
  };
  const auto text = [&](double x, double y, const char* anchor, const std::string& what) {
    absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y,
                          anchor, what);
  };
  const auto decades = static_cast<int>(std::lround(std::log10(y1 / y0)));
  for (int i = 0; i <= decades; ++i) {
    const double y = y0 * std::pow(10, i);
    line(kLeft, at_y(y), kWidth - kRight, at_y(y), "stroke=\"#ddd\"");
    text(kLeft - 8, at_y(y) + 4, "end", absl::StrFormat("%g s", y));
  }
  const auto doublings = static_cast<int>(std::floor(std::log2(x1 / x0) + 1e-9));
  for (int i = 0; i <= doublings; ++i) {
    const double x = x0 * std::pow(2, i);
    line(at_x(x), kTop, at_x(x), kHeight - kBottom, "stroke=\"#eee\"");
    text(at_x(x), kHeight - kBottom + 18, "middle", absl::StrFormat("%.0f", x));
  }
  text((kLeft + kWidth - kRight) / 2, kHeight - 12, "middle", "GPUs");
  for (size_t i = 0; i < series.size(); ++i) {
    const char* const color = kColors[i % std::size(kColors)];
    const auto& points = series[i].points;
    const auto& [fx, fy] = points.front();
    // Perfect scaling, as far as the axis shows it.
    const double end = std::min(x1, fx * fy / y0);
    line(at_x(fx), at_y(fy), at_x(end), at_y(fy * fx / end),
         absl::StrFormat("stroke=\"%s\" stroke-dasharray=\"4 4\" opacity=\"0.5\"", color).c_str());
    std::string path;
    for (const auto& [x, y] : points) {
      absl::StrAppendFormat(&path, "%.1f,%.1f ", at_x(x), at_y(y));
      absl::StrAppendFormat(&svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                            at_x(x), at_y(y), color);
    }
    absl::StrAppendFormat(&svg,
                          "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" "
                          "stroke-width=\"2\"/>\n",
                          path, color);
    text(at_x(points.back().first) + 8, at_y(points.back().second) + 4, "start", series[i].label);
  }
  return svg + "</svg>\n";
}

}  // namespace annulus::bench
