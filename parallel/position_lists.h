// SPDX-License-Identifier: Apache-2.0
// Positions of the rows that each rank holds of a slot, written out for the kernels and kept from
// step to step, so that a step costs what it adds and not the length of the prompt (at a million
// tokens over 16 ranks, writing them out anew took 7 ms a step). Lists are made when first asked
// for. One owner: Rank; one thread.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "parallel/sharding.h"

namespace annulus::parallel {

class PositionLists {
 public:
  // For every op, in plan order, before of() is asked about the state after it.
  void apply(const Op& op);

  // positions(slot.ranks[rank]); valid until the next call for this slot and rank, or apply.
  std::span<const int32_t> of(int32_t slot_id, const SlotShard& slot, int32_t rank);

 private:
  std::map<int32_t, std::vector<std::vector<int32_t>>> slots_;  // by rank
};

}  // namespace annulus::parallel
