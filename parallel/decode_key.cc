// SPDX-License-Identifier: Apache-2.0
#include "parallel/decode_key.h"

#include <algorithm>
#include <vector>

#include "absl/hash/hash.h"

namespace annulus::parallel {

uint64_t decode_key(const StepPlan& plan, std::span<const GroupLayout> layouts) {
  const auto is_decode = [](const Item& item) { return item.count() == 1; };
  if (plan.items.empty() || !std::all_of(plan.items.begin(), plan.items.end(), is_decode)) return 0;
  std::vector<int64_t> shape;
  for (const GroupLayout& group : layouts) {
    if (group.variant == Variant::kPassKv && group.q_rows.size() > 1) return 0;
    shape.push_back(static_cast<int64_t>(group.variant));
    shape.push_back(static_cast<int64_t>(group.slots.size()));
    for (size_t item = 0; item < group.slots.size(); ++item) {
      for (size_t rank = 0; rank < group.ranks.size(); ++rank) {
        if (!group.ranks[rank][item].q_positions.empty())
          shape.push_back(static_cast<int64_t>(rank));  // its owner
      }
    }
  }
  for (const Item& item : plan.items) {
    int64_t wishes = 0;
    for (const Wanted& wanted : item.wanted) {
      wishes += 1 + int64_t{wanted.sample} * 2 + int64_t{wanted.target >= 0} * 4 +
                int64_t{wanted.logprob} * 8 + int64_t{wanted.top} * 16;
    }
    shape.push_back(wishes);
  }
  return std::max<uint64_t>(absl::HashOf(shape), 1);
}

}  // namespace annulus::parallel
