// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_ids.h"

#include <iterator>

#include "kernels/core/check.h"

namespace annulus::parallel {
namespace {

constexpr TagField kFields[] = {kTagHop,    kTagSequence, kTagLayer, kTagStep,
                                kTagSender, kTagGroup,    kTagEpoch};

constexpr bool adjacent() {
  int end = 0;
  for (const TagField& field : kFields) {
    if (field.shift != end) return false;
    end += field.bits;
  }
  return end == 64;
}
static_assert(adjacent(), "tag fields must fill 64 bits without gap or overlap");

constexpr uint64_t limit(TagField field) {
  return uint64_t{1} << field.bits;
}

uint64_t whole(TagField field, int64_t value, const char* what) {
  ANNULUS_CHECK(value >= 0 && static_cast<uint64_t>(value) < limit(field), what, " ", value,
                " does not fit a message tag");
  return static_cast<uint64_t>(value) << field.shift;
}

uint64_t wrapped(TagField field, int64_t value) {
  return (static_cast<uint64_t>(value) & (limit(field) - 1)) << field.shift;
}

}  // namespace

const char* name(GroupId group) {
  constexpr const char* kNames[] = {"tp", "cp", "world"};
  return kNames[static_cast<size_t>(group)];
}

std::string describe(GroupId group, int32_t rank, const std::vector<int32_t>& members,
                     const OpId& op) {
  return kernels::concat(name(group), " rank ", rank, " of ", members.size(), " (world rank ",
                         members[static_cast<size_t>(rank)], "): ", op.what, ", step ", op.step,
                         ", layer ", op.layer, ", sequence ", op.sequence, ", hop ", op.hop);
}

std::vector<int32_t> group_members(const Topology& topology, GroupId group, int32_t world_rank) {
  std::vector<int32_t> members;
  const int32_t tp_rank = topology.tp_rank(world_rank), cp_rank = topology.cp_rank(world_rank);
  switch (group) {
    case GroupId::kTp:
      for (int32_t r = 0; r < topology.tp; ++r) members.push_back(topology.world_rank(r, cp_rank));
      break;
    case GroupId::kCp:
      for (int32_t r = 0; r < topology.cp; ++r) members.push_back(topology.world_rank(tp_rank, r));
      break;
    case GroupId::kWorld:
      for (int32_t r = 0; r < topology.world(); ++r) members.push_back(r);
      break;
  }
  return members;
}

int32_t group_rank(const Topology& topology, GroupId group, int32_t world_rank) {
  switch (group) {
    case GroupId::kTp: return topology.tp_rank(world_rank);
    case GroupId::kCp: return topology.cp_rank(world_rank);
    case GroupId::kWorld: break;
  }
  return world_rank;
}

uint64_t message_tag(int64_t epoch, GroupId group, const OpId& op, int32_t sender) {
  return whole(kTagHop, op.hop, "hop") | whole(kTagSequence, op.sequence, "sequence") |
         whole(kTagLayer, op.layer, "layer") | wrapped(kTagStep, op.step) |
         whole(kTagSender, sender, "rank") |
         whole(kTagGroup, static_cast<int64_t>(group), "group") | wrapped(kTagEpoch, epoch);
}

void AbortFlag::raise(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (raised_.load(std::memory_order_relaxed)) return;
  why_ = why;
  raised_.store(true, std::memory_order_release);
}

std::string AbortFlag::why() const {
  const std::lock_guard lock(mutex_);
  return why_;
}

}  // namespace annulus::parallel
