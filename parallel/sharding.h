// SPDX-License-Identifier: Apache-2.0
// Which rank holds which token, now and after the next step. PURE: plain data in, plain data out,
// all ranks at once; no tensors, no devices, no rank-of-self. Front end and every rank fold the
// same plans over the same state. Prompt items are split zigzag (arXiv 2411.01783, 3.5.1): 2N even
// chunks, the remainder one token each to the first chunks, rank i takes chunks i and 2N-1-i.
// Decode items go by position: owner = (decode_base + position) mod N, so that one sequence's
// tokens go round robin whoever else is in the batch. A rank stores rows of a slot in append order;
// positions ascend within a rank because plans append at the end.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "parallel/step.h"

namespace annulus::parallel {

std::array<Span, 2> zigzag(int64_t first, int64_t count, int32_t rank, int32_t ranks);
int32_t decode_owner(int32_t decode_base, int64_t position, int32_t ranks);
// Positions are below this: INT32_MAX pads keys (kernels/attention.h).
inline constexpr int64_t kMaxPositions = INT32_MAX;

struct SlotShard {
  int64_t length = 0;  // positions [0, length) have KV somewhere
  int32_t decode_base = 0;
  SamplingParams sampling;
  // Per rank in storage order. One form for one list of positions: a position joins the last span
  // where it continues it by its stride (1 or cp; a span of one has 1), so that a truncated state
  // equals the one that never had the tail.
  std::vector<std::vector<Span>> ranks;
  friend bool operator==(const SlotShard&, const SlotShard&) = default;
};

struct ShardState {
  int32_t cp = 1;
  uint64_t digest = 0;  // rolling, over every op and item applied
  std::map<int32_t, SlotShard> slots;
  friend bool operator==(const ShardState&, const ShardState&) = default;
};

int64_t count(std::span<const Span> spans);
std::vector<int32_t> positions(std::span<const Span> spans);  // expanded, storage order

// Is the plan possible in this state (before its ops)? Slots exist, spans append at the end, wanted
// positions lie in spans, references and groups are whole. Ranks CHECK it; the front end's
// scheduler is tested against it. rank: the plan's tokens are cut to that rank's (plan_for_rank).
// A digest that is not the state's is FailedPrecondition (drift), all else InvalidArgument.
inline constexpr int32_t kAllRanks = -1;
absl::Status validate(const ShardState& state, const StepPlan& plan, int32_t rank = kAllRanks);

// Applies ops only, or the whole plan (ops, then items appended).
void apply_ops(ShardState& state, const StepPlan& plan);
ShardState advance(ShardState state, const StepPlan& plan);

// New rows of one item per rank, in storage order; state has the plan's ops applied (for
// decode_base).
std::vector<std::vector<Span>> shard_item(const ShardState& state, const Item& item);
// Which rank computes this position of the item.
int32_t owner(const ShardState& state, const Item& item, int64_t position);
// The item's inline tokens that this rank computes, in storage order.
std::vector<int32_t> tokens_of(const ShardState& state, const Item& item, int32_t rank);
// The plan with every item's tokens cut to this rank's; what is encoded for it. state has the
// plan's ops applied (its items may be too).
StepPlan plan_for_rank(const ShardState& state, const StepPlan& plan, int32_t rank);

// Rows per rank of a group's payloads. `after` is the state with the whole plan applied.
std::vector<int64_t> q_rows(const ShardState& after, const StepPlan& plan, const Group& group);
std::vector<int64_t> kv_rows(const ShardState& after, const StepPlan& plan, const Group& group);

// A sequence that decodes, or is about to: the position of its next decoded token.
struct DecodeRow {
  int64_t position = 0;
  int32_t decode_base = 0;
};
// For the scheduler. The base for a sequence whose next decoded position is next_position: its row
// falls on the rank with the fewest decode rows of the same step; tie: the fewest KV rows, then the
// lowest rank. Every sequence moves on by one rank a step, so what is even once stays even.
int32_t choose_decode_base(const ShardState& state, std::span<const DecodeRow> rows,
                           int64_t next_position);
// Bases (in the order of rows) that give each rank at most ceil(rows / cp) rows, changing as few as
// possible; send a kRebase for each that differs. After many sequences left by chance.
std::vector<int32_t> even_decode_bases(const ShardState& state, std::span<const DecodeRow> rows);

std::string encode(const ShardState& state);
absl::StatusOr<ShardState> decode_shard_state(std::string_view bytes);

}  // namespace annulus::parallel
