// SPDX-License-Identifier: Apache-2.0
// Which rank decodes which sequence: choose_decode_base and even_decode_bases of sharding.h. Both
// look at one step only. The owner is (decode_base + position) mod cp and every sequence's position
// grows by one a step, so that the picture turns by one rank each step and keeps its shape.
#include <algorithm>

#include "parallel/sharding.h"

namespace annulus::parallel {
namespace {

size_t owner_of(const DecodeRow& row, int32_t cp) {
  return static_cast<size_t>(decode_owner(row.decode_base, row.position, cp));
}

std::vector<int64_t> rows_per_rank(std::span<const DecodeRow> rows, int32_t cp) {
  std::vector<int64_t> loads(static_cast<size_t>(cp), 0);
  for (const DecodeRow& row : rows) ++loads[owner_of(row, cp)];
  return loads;
}

std::vector<int64_t> kv_per_rank(const ShardState& state) {
  std::vector<int64_t> kv(static_cast<size_t>(state.cp), 0);
  for (const auto& [id, slot] : state.slots) {
    for (size_t r = 0; r < kv.size(); ++r) kv[r] += count(slot.ranks[r]);
  }
  return kv;
}

size_t least_loaded(const std::vector<int64_t>& loads, const std::vector<int64_t>& kv) {
  size_t best = 0;
  for (size_t r = 1; r < loads.size(); ++r) {
    if (std::pair(loads[r], kv[r]) < std::pair(loads[best], kv[best])) best = r;
  }
  return best;
}

// The base that puts this position on this rank.
int32_t base_for(size_t rank, int64_t position, int32_t cp) {
  return static_cast<int32_t>((static_cast<int64_t>(rank) + cp - position % cp) % cp);
}

}  // namespace

int32_t choose_decode_base(const ShardState& state, std::span<const DecodeRow> rows,
                           int64_t next_position) {
  const size_t rank = least_loaded(rows_per_rank(rows, state.cp), kv_per_rank(state));
  return base_for(rank, next_position, state.cp);
}

std::vector<int32_t> even_decode_bases(const ShardState& state, std::span<const DecodeRow> rows) {
  std::vector<int64_t> loads = rows_per_rank(rows, state.cp);
  const std::vector<int64_t> kv = kv_per_rank(state);
  const auto n = static_cast<int64_t>(rows.size());
  const int64_t most = (n + state.cp - 1) / state.cp;
  std::vector<int32_t> bases;
  for (const DecodeRow& row : rows) {
    bases.push_back(row.decode_base);
    const size_t from = owner_of(row, state.cp);
    if (loads[from] <= most) continue;
    const size_t to = least_loaded(loads, kv);
    --loads[from];
    ++loads[to];
    bases.back() = base_for(to, row.position, state.cp);
  }
  return bases;
}

}  // namespace annulus::parallel
