// SPDX-License-Identifier: Apache-2.0
// World rank <-> (tp_rank, cp_rank), as arithmetic. TP ranks are neighbours (inside a node on the
// target); the CP group of a rank is the ranks with its tp_rank. A topology belongs to an epoch,
// not to a process.
#pragma once

#include <cstdint>

namespace annulus::parallel {

struct Topology {
  int32_t tp = 1, cp = 1;

  constexpr int32_t world() const { return tp * cp; }
  constexpr int32_t tp_rank(int32_t world_rank) const { return world_rank % tp; }
  constexpr int32_t cp_rank(int32_t world_rank) const { return world_rank / tp; }
  constexpr int32_t world_rank(int32_t tp_rank, int32_t cp_rank) const {
    return cp_rank * tp + tp_rank;
  }
  friend constexpr bool operator==(const Topology&, const Topology&) = default;
};

}  // namespace annulus::parallel
