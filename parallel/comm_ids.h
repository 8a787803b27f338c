// SPDX-License-Identifier: Apache-2.0
// Names shared by the message backends (threads, UCX): the groups of a rank and the 64-bit tag of
// one message. A tag says epoch, group, step, layer, sequence, hop and the sender's rank in the
// group, so a receive matches exactly the message that its operation means: a late message of an
// aborted step or another epoch matches nothing. step and epoch are stored modulo their field: a
// step is over on all ranks hundreds of steps before its number comes again (a rank is two plans
// ahead of another at most), and every epoch has its own endpoints besides. PURE.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/topology.h"

namespace annulus::parallel {

enum class GroupId : uint8_t { kTp = 0, kCp = 1, kWorld = 2 };
const char* name(GroupId group);  // "tp", "cp", "world"

// World ranks of the group that world_rank belongs to, in group order.
std::vector<int32_t> group_members(const Topology& topology, GroupId group, int32_t world_rank);
int32_t group_rank(const Topology& topology, GroupId group, int32_t world_rank);

// "cp rank 1 of 3 (world rank 4): kv ring, step 7, ...", for errors; members: of the group.
std::string describe(GroupId group, int32_t rank, const std::vector<int32_t>& members,
                     const OpId& op);

struct TagField {
  int shift, bits;
};
inline constexpr TagField kTagHop{0, 12};
inline constexpr TagField kTagSequence{12, 12};
inline constexpr TagField kTagLayer{24, 10};
inline constexpr TagField kTagStep{34, 8};
inline constexpr TagField kTagSender{42, 12};
inline constexpr TagField kTagGroup{54, 2};
inline constexpr TagField kTagEpoch{56, 8};
inline constexpr int32_t kMaxGroupSize = 1 << kTagSender.bits;
static_assert(kTagHop.bits >= kTagSender.bits, "a ring has a hop less than ranks");

// Aborts (CHECK) where layer, sequence, hop or sender do not fit: the plan was impossible.
uint64_t message_tag(int64_t epoch, GroupId group, const OpId& op, int32_t sender);

// Raised once, by any thread; the first reason stays.
class AbortFlag {
 public:
  void raise(const std::string& why);
  bool raised() const { return raised_.load(std::memory_order_acquire); }
  std::string why() const;

 private:
  std::atomic<bool> raised_ = false;
  mutable std::mutex mutex_;
  std::string why_;  // guarded by mutex_
};

}  // namespace annulus::parallel
