// SPDX-License-Identifier: Apache-2.0
#include "parallel/position_lists.h"

#include <gtest/gtest.h>

#include <random>

namespace annulus::parallel {
namespace {

std::vector<int32_t> listed(PositionLists& lists, const ShardState& state, int32_t slot,
                            int32_t rank) {
  const std::span<const int32_t> list = lists.of(slot, state.slots.at(slot), rank);
  return {list.begin(), list.end()};
}

// Random plans of every op and both placements: lists asked for now and then equal those written
// out anew.
TEST(PositionLists, EqualTheWrittenOutSpans) {
  std::mt19937 random(7);
  const auto draw = [&](int32_t below) {
    return std::uniform_int_distribution<int32_t>(0, below - 1)(random);
  };
  for (const int32_t cp : {1, 2, 3, 4, 7}) {
    ShardState state;
    state.cp = cp;
    PositionLists lists;
    int32_t next_slot = 0;
    for (int step = 0; step < 400; ++step) {
      StepPlan plan;
      Op op;
      op.slot = state.slots.empty()
                    ? -1
                    : std::next(state.slots.begin(), draw(static_cast<int32_t>(state.slots.size())))
                          ->first;
      const int kind = op.slot < 0 ? 0 : draw(12);
      if (kind == 0) {
        op.kind = Op::Kind::kAdmit;
        op.slot = next_slot++;
      } else if (kind == 1) {
        op.kind = Op::Kind::kRelease;
      } else if (kind == 2) {
        op.kind = Op::Kind::kFork;
        op.from = op.slot;
        op.slot = next_slot++;
        op.length = draw(static_cast<int32_t>(state.slots.at(op.from).length) + 1);
      } else if (kind <= 5) {
        op.kind = Op::Kind::kTruncate;
        op.length = draw(static_cast<int32_t>(state.slots.at(op.slot).length) + 1);
      } else {
        op.kind = Op::Kind::kRebase;
        op.decode_base = draw(cp);
      }
      plan.ops = {op};
      ShardState before = state;
      apply_ops(before, plan);
      if (const auto slot = before.slots.find(op.slot); slot != before.slots.end()) {
        Item item;
        item.slot = op.slot;
        item.placement = draw(2) == 0 ? Placement::kPrompt : Placement::kDecode;
        item.spans = {{slot->second.length, 1 + draw(40), 1}};
        plan.items = {item};
      }
      state = advance(state, plan);
      lists.apply(op);
      for (const auto& [id, slot] : state.slots) {
        const int32_t rank = draw(cp);
        if (draw(3) == 0) continue;
        ASSERT_EQ(listed(lists, state, id, rank), positions(slot.ranks[static_cast<size_t>(rank)]))
            << "cp " << cp << " step " << step << " slot " << id << " rank " << rank;
      }
    }
  }
}

}  // namespace
}  // namespace annulus::parallel
