// SPDX-License-Identifier: Apache-2.0
#include "parallel/ring_attention.h"

#include <algorithm>

namespace annulus::parallel {
namespace {

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

}  // namespace

std::vector<GroupLayout> layout_groups(const ShardState& after, const StepPlan& plan, int32_t rank,
                                       const PolicyInput& policy, PositionLists& lists) {
  std::vector<GroupLayout> layouts;
  int64_t row_first = 0;
  for (const Group& group : plan.groups) {
    GroupLayout layout;
    layout.variant = group.variant;
    layout.row_first = row_first;
    layout.ranks.resize(index(after.cp));
    layout.q_rows = q_rows(after, plan, group);
    layout.kv_rows = kv_rows(after, plan, group);
    std::vector<int64_t> q_first(index(after.cp), 0), kv_first(index(after.cp), 0);
    int64_t new_rows = 0, all_rows = 0;
    for (const int32_t i : group.items) {
      const Item& item = plan.items[index(i)];
      const auto fresh = shard_item(after, item);
      const SlotShard& slot = after.slots.at(item.slot);
      layout.slots.push_back(item.slot);
      new_rows += item.count();
      all_rows += slot.length;
      for (int32_t r = 0; r < after.cp; ++r) {
        ItemRows rows;
        rows.q_first = q_first[index(r)];
        rows.kv_first = kv_first[index(r)];
        rows.q_positions = positions(fresh[index(r)]);
        if (group.variant == Variant::kPassKv && r != rank) {
          rows.kv_positions = lists.of(item.slot, slot, r);
        }
        q_first[index(r)] += static_cast<int64_t>(rows.q_positions.size());
        kv_first[index(r)] += count(slot.ranks[index(r)]);
        layout.ranks[index(r)].push_back(std::move(rows));
      }
    }
    const int64_t most_kv = *std::max_element(layout.kv_rows.begin(), layout.kv_rows.end());
    layout.block_rows = rows_per_block(policy, group.variant, most_kv);
    const double share = static_cast<double>(after.cp - 1) / after.cp * policy.shape.layers;
    const double per_rank =
        group.variant == Variant::kPassKv
            ? static_cast<double>(all_rows * policy.shape.kv_row_bytes())
            : static_cast<double>(new_rows *
                                  (policy.shape.q_row_bytes() + policy.shape.partial_row_bytes()));
    layout.formula_bytes = static_cast<int64_t>(share * per_rank);
    row_first += layout.q_rows[index(rank)];
    layouts.push_back(std::move(layout));
  }
  return layouts;
}

}  // namespace annulus::parallel
