// SPDX-License-Identifier: Apache-2.0
#include "parallel/position_lists.h"

#include <algorithm>

#include "kernels/core/check.h"

namespace annulus::parallel {

void PositionLists::apply(const Op& op) {
  switch (op.kind) {
    case Op::Kind::kAdmit:
    case Op::Kind::kSampling:
    case Op::Kind::kRebase: return;
    case Op::Kind::kFork:  // made when asked for
    case Op::Kind::kRelease: slots_.erase(op.slot); return;
    case Op::Kind::kTruncate: {
      const auto found = slots_.find(op.slot);
      if (found == slots_.end()) return;
      for (std::vector<int32_t>& list : found->second) {
        list.erase(std::lower_bound(list.begin(), list.end(), op.length), list.end());
      }
      return;
    }
  }
}

std::span<const int32_t> PositionLists::of(int32_t slot_id, const SlotShard& slot, int32_t rank) {
  std::vector<std::vector<int32_t>>& lists = slots_[slot_id];
  lists.resize(slot.ranks.size());
  std::vector<int32_t>& list = lists[static_cast<size_t>(rank)];
  // Only what was appended since: positions ascend, and what is here stays a prefix.
  const std::vector<Span>& spans = slot.ranks[static_cast<size_t>(rank)];
  const int64_t known = list.empty() ? -1 : list.back();
  auto span = spans.end();
  while (span != spans.begin() && std::prev(span)->last() > known) --span;
  for (; span != spans.end(); ++span) {
    const int64_t skip = known < span->first ? 0 : (known - span->first) / span->stride + 1;
    for (int64_t i = skip; i < span->count; ++i) {
      list.push_back(static_cast<int32_t>(span->first + i * span->stride));
    }
  }
  return list;
}

}  // namespace annulus::parallel
