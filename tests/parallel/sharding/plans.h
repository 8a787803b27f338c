// SPDX-License-Identifier: Apache-2.0
// Short ways to write plans, for the tests of this folder.
#pragma once

#include <random>
#include <vector>

#include "parallel/sharding.h"

namespace annulus::parallel::testing {

inline Op admit(int32_t slot, int32_t decode_base = 0) {
  Op op;
  op.slot = slot;
  op.decode_base = decode_base;
  return op;
}
inline Op op_of(Op::Kind kind, int32_t slot, int64_t length = 0, int32_t from = 0) {
  Op op;
  op.kind = kind;
  op.slot = slot;
  op.length = length;
  op.from = from;
  return op;
}
inline Op rebase(int32_t slot, int32_t decode_base) {
  Op op = op_of(Op::Kind::kRebase, slot);
  op.decode_base = decode_base;
  return op;
}

// Tokens are the positions, so that a test can tell which token went where.
inline Item item_of(int32_t slot, int64_t first, int32_t count,
                    Placement placement = Placement::kPrompt) {
  Item item;
  item.slot = slot;
  item.placement = placement;
  item.spans = {{first, count, 1}};
  for (int32_t i = 0; i < count; ++i) item.tokens.push_back(static_cast<int32_t>(first) + i);
  return item;
}

// One group of all items; the digest of the state.
inline StepPlan plan_of(const ShardState& state, std::vector<Op> ops, std::vector<Item> items) {
  StepPlan plan;
  plan.step = 100;
  plan.digest = state.digest;
  plan.ops = std::move(ops);
  plan.items = std::move(items);
  Group group;
  for (size_t i = 0; i < plan.items.size(); ++i) group.items.push_back(static_cast<int32_t>(i));
  if (!group.items.empty()) plan.groups = {group};
  return plan;
}

inline ShardState state_of(int32_t cp) {
  ShardState state;
  state.cp = cp;
  return state;
}

// Validates, then applies.
inline absl::Status step(ShardState& state, const StepPlan& plan) {
  absl::Status status = validate(state, plan);
  if (status.ok()) state = advance(std::move(state), plan);
  return status;
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t in(int64_t low, int64_t high) {  // both included
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  int32_t in32(int32_t low, int32_t high) { return static_cast<int32_t>(in(low, high)); }
  bool coin() { return in(0, 1) == 1; }
  float real() { return std::uniform_real_distribution<float>(-10, 10)(engine_); }

 private:
  std::mt19937_64 engine_;
};

}  // namespace annulus::parallel::testing
