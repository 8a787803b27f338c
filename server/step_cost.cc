// SPDX-License-Identifier: Apache-2.0
#include "server/step_cost.h"

#include <algorithm>
#include <array>

#include "kernels/core/math.h"

namespace annulus::server {

using kernels::ceil_div;

using parallel::Group;
using parallel::kVariants;
using parallel::Load;
using parallel::PolicyInput;
using parallel::Prediction;
using parallel::Variant;

namespace {

// With fewer rows on a rank a step is mostly fixed costs (reading the weights once): a chunk has as
// many on every rank, or, where that breaks the time limit, on all together.
constexpr int64_t kLeastRows = 64;

double miss_rate(std::span<const Load> loads, const Group& group) {
  Load all;
  for (int32_t i : group.items) {
    all.n_new += loads[static_cast<size_t>(i)].n_new;
    all.n_cached += loads[static_cast<size_t>(i)].n_cached;
  }
  return all.miss_rate();
}

}  // namespace

std::vector<Group> group_items(const PolicyInput& policy, std::span<const Load> loads,
                               std::span<const std::optional<Variant>> forced) {
  std::array<Group, kVariants> by_variant;
  for (int32_t v = 0; v < kVariants; ++v) {
    by_variant[static_cast<size_t>(v)].variant = static_cast<Variant>(v);
  }
  std::vector<Load> free_loads;
  std::vector<int32_t> free_items;
  for (size_t i = 0; i < loads.size(); ++i) {
    if (forced[i]) {
      by_variant[static_cast<size_t>(*forced[i])].items.push_back(static_cast<int32_t>(i));
    } else {
      free_loads.push_back(loads[i]);
      free_items.push_back(static_cast<int32_t>(i));
    }
  }
  if (!free_loads.empty()) {
    for (const Group& group : parallel::make_groups(policy, free_loads)) {
      std::vector<int32_t>& items = by_variant[static_cast<size_t>(group.variant)].items;
      for (int32_t i : group.items) items.push_back(free_items[static_cast<size_t>(i)]);
    }
  }
  std::vector<Group> groups;
  for (Group& group : by_variant) {
    if (group.items.empty()) continue;
    std::sort(group.items.begin(), group.items.end());
    groups.push_back(std::move(group));
  }
  std::stable_sort(groups.begin(), groups.end(), [&](const Group& a, const Group& b) {
    return miss_rate(loads, a) > miss_rate(loads, b);
  });
  return groups;
}

double step_us(const PolicyInput& policy, std::span<const Load> loads,
               std::span<const Group> groups) {
  int64_t rows = 0;
  for (const Load& load : loads) rows += load.n_new;
  double us = policy.profile.linear_us_per_row * static_cast<double>(ceil_div(rows, policy.cp));
  for (const Group& group : groups) {
    std::vector<Load> of_group;
    for (int32_t i : group.items) of_group.push_back(loads[static_cast<size_t>(i)]);
    us += parallel::predict(policy, of_group)[static_cast<size_t>(group.variant)].us;
  }
  return us;
}

double item_us(const PolicyInput& policy, const Load& load, std::optional<Variant> forced) {
  const std::span<const Load> one(&load, 1);
  const std::array<Prediction, kVariants> by_variant = parallel::predict(policy, one);
  const Variant variant = forced ? *forced : parallel::choose(policy, one);
  return by_variant[static_cast<size_t>(variant)].us +
         policy.profile.linear_us_per_row * static_cast<double>(ceil_div(load.n_new, policy.cp));
}

int64_t chunk_end(const PolicyInput& policy, int64_t first, int64_t end,
                  const ChunkLimits& limits) {
  const auto affordable = [&](int64_t to) {
    return item_us(policy, Load{to - first, first}, limits.forced) <= limits.budget_us;
  };
  if (limits.fixed > 0) {
    const int64_t to = std::min(end, (first / limits.fixed + 1) * limits.fixed);
    return limits.must || affordable(to) ? to : first;
  }
  const int64_t even = int64_t{2} * policy.cp;
  if (end - first > limits.most) end = (first + std::max(limits.most, even)) / even * even;
  if (affordable(end)) return end;

  const auto boundary = [&](int64_t unit, int64_t k) {
    return std::min(end, (first / unit + k) * unit);
  };
  const int64_t worth = kLeastRows * policy.cp;
  const int64_t efficient = parallel::smallest_efficient_chunk(policy, first, worth);
  // Where links or ranks are slow the limit wins.
  int64_t unit = 0;
  for (const int64_t tokens : {std::max(efficient, worth), worth, kLeastRows}) {
    unit = ceil_div(tokens, even) * even;
    if (affordable(boundary(unit, 1))) break;
  }
  if (!affordable(boundary(unit, 1))) return limits.must ? boundary(unit, 1) : first;
  int64_t good = 1, bad = ceil_div(end, unit) - first / unit;  // boundary(unit, bad) == end
  while (bad - good > 1) {
    const int64_t middle = good + (bad - good) / 2;
    (affordable(boundary(unit, middle)) ? good : bad) = middle;
  }
  return boundary(unit, good);
}

}  // namespace annulus::server
