// SPDX-License-Identifier: Apache-2.0
#include "server/stragglers.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"
#include "server/outliers.h"

namespace annulus::server {
namespace {

template <class Value>
std::vector<double> column(std::span<const RankWindow> ranks, const Value& value) {
  std::vector<double> out;
  out.reserve(ranks.size());
  for (const RankWindow& rank : ranks) out.push_back(static_cast<double>(value(rank)));
  return out;
}

}  // namespace

std::vector<double> excess(std::span<const RankWindow> ranks) {
  std::vector<double> out(ranks.size(), 0);
  const std::vector<double> times =
      column(ranks, [](const RankWindow& rank) { return rank.compute_us; });
  if (!std::all_of(times.begin(), times.end(), [](double us) { return std::isfinite(us); })) {
    return out;
  }
  const double typical = median(times);
  if (typical <= 0) return out;
  std::vector<double> allowed(ranks.size(), 1);
  const auto excuse = [&](const std::vector<double>& work) {
    const double usual = std::max(median(work), 1.0);
    for (size_t r = 0; r < ranks.size(); ++r) allowed[r] = std::max(allowed[r], work[r] / usual);
  };
  excuse(column(ranks, [](const RankWindow& rank) { return rank.rows + rank.logit_rows; }));
  excuse(column(ranks, [](const RankWindow& rank) { return rank.kv_rows; }));
  for (size_t r = 0; r < ranks.size(); ++r) out[r] = times[r] / (typical * allowed[r]) - 1;
  return out;
}

std::vector<StragglerChange> Stragglers::window(std::span<const RankWindow> ranks) {
  ANNULUS_CHECK(ranks.size() == ranks_.size(), ranks.size(), " ranks of ", ranks_.size());
  const std::vector<double> beyond = excess(ranks);
  std::vector<StragglerChange> changes;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    Rank& rank = ranks_[r];
    rank.excess = beyond[r];
    const bool differs = rank.straggles ? rank.excess < kCleared : rank.excess > kOutlier;
    rank.in_a_row = differs ? rank.in_a_row + 1 : 0;
    if (rank.in_a_row < kWindows) continue;
    rank.in_a_row = 0;
    rank.straggles = !rank.straggles;
    changes.push_back({static_cast<int32_t>(r), rank.straggles});
  }
  return changes;
}

}  // namespace annulus::server
