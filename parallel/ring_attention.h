// SPDX-License-Identifier: Apache-2.0
// Attention of one group of items over the CP ranks, in three variants that give the same result
// (arXiv 2411.01783, Algorithms 2 to 4):
//   pass-KV : visit = attend(own q, payload of KV rows); nothing returns.
//   pass-Q  : visit = attend(payload of q rows, own KV) into that origin's partial; all-to-all of
//   (o, lse); merge. gather-Q: all-gather of q, the same visits without a ring, all-to-all, merge:
//   for a few rows (decode).
// A GroupLayout says whose rows are where, derived from the plan by every rank alike; sizes and
// positions never travel. Own KV is read from the cache in place; a pass-KV hop carries packed
// rows; partials travel as fp32, o then lse. Workspace is bounded: pass-Q and gather-Q run over
// blocks of rows, pass-KV holds its own packed rows and two payloads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/core/tensor.h"
#include "parallel/communicator.h"
#include "parallel/kv_store.h"
#include "parallel/position_lists.h"
#include "parallel/ring_policy.h"
#include "parallel/sharding.h"

namespace annulus::parallel {

struct ItemRows {       // one item on one rank
  int64_t q_first = 0;  // within the rank's rows of the group
  std::vector<int32_t> q_positions;
  int64_t kv_first = 0;                   // within the rank's payload
  std::span<const int32_t> kv_positions;  // for pass-KV only; own rows come from the store
  // The same where the device reads them: upload().
  const int32_t *device_q_positions = nullptr, *device_kv_positions = nullptr;
};

struct GroupLayout {
  Variant variant = Variant::kPassKv;
  int64_t row_first = 0;       // this rank's rows of the group within its rows of the step
  std::vector<int32_t> slots;  // per item
  std::vector<std::vector<ItemRows>> ranks;  // [rank][item]
  std::vector<int64_t> q_rows, kv_rows;      // per rank
  int64_t block_rows = 0;                    // rows of each rank per pass (pass-Q, gather-Q)
  int64_t formula_bytes =
      0;  // the paper's volume per rank, all layers (reference: section 3.1 of the method)
};

// after: the state with the whole plan applied. lists: of this rank, with the plan's ops applied;
// the layout points into them until they change.
std::vector<GroupLayout> layout_groups(const ShardState& after, const StepPlan& plan, int32_t rank,
                                       const PolicyInput& policy, PositionLists& lists);

// Brings the layouts' positions to the device, once a step; they live as long as the layouts and
// the Mark around this call.
template <class Queue>
void upload(Queue& queue, std::span<GroupLayout> layouts);

template <class Queue>
struct AttentionCall {
  Communicator<Queue>& ring;
  const KvStore<Queue>& store;
  int32_t layer = 0;
  float scale = 1;
  OpId op;  // sequence is counted up by the call; equal on all ranks
  int64_t workspace_bytes =
      0;  // largest so far: own packed rows, two payloads, partials of a block
  std::function<void(int32_t hop)> on_visit = {};  // before each payload; may be empty
  double all_to_all_us = 0;                        // waited while partials returned, so far
};

// out = attention of the group's rows (this rank's), q [rows, heads * head_dim] in the dtype of the
// cache. Defined in ring_attention_inl.h.
template <class Queue>
void ring_attend(Queue& queue, const GroupLayout& group, AttentionCall<Queue>& call,
                 kernels::ConstTensor q, kernels::Partial out);

}  // namespace annulus::parallel
