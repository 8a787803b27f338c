// SPDX-License-Identifier: Apache-2.0
// A log of plans, as a worker folds it: CP size (one byte), then plans, each with its length. A
// plan that validate() takes must go through everything that ranks do with it before they compute:
// cut to each rank, sharded, laid out for attention, folded into the state. The same bytes are also
// given to the decoders of results and of shard states.
#include "parallel/step.h"

#include <numeric>

#include "parallel/ring_attention.h"
#include "parallel/sharding.h"
#include "tests/fuzz/target.h"

namespace annulus::fuzz {
namespace {

using namespace parallel;  // NOLINT

void decode_alone(std::string_view bytes) {
  if (const auto result = decode_result(bytes); result.ok()) {
    ANNULUS_CHECK(encode(*result) == bytes);
  } else {
    check_error(result.status());
  }
  if (const auto state = decode_shard_state(bytes); state.ok()) {
    ANNULUS_CHECK(encode(*state) == bytes);
  } else {
    check_error(state.status());
  }
}

void check_shards(const ShardState& before, const StepPlan& plan) {
  ShardState with_ops = before;
  apply_ops(with_ops, plan);
  const ShardState after = advance(before, plan);
  PolicyInput policy;
  policy.shape = {4, 2, 16, 2, kernels::DType::kF32};
  policy.cp = before.cp;
  policy.workspace_limit_bytes = 1 << 20;
  PositionLists lists;  // empty: filled from the state
  for (int32_t rank = 0; rank < before.cp; ++rank) {
    const StepPlan cut = plan_for_rank(with_ops, plan, rank);
    const absl::Status status = validate(before, cut, rank);
    ANNULUS_CHECK(status.ok(), "cut for rank ", rank, ": ", std::string(status.message()));
    const std::string bytes = encode(cut);  // not ==: a NaN equals nothing
    ANNULUS_CHECK(encode(decode_plan(bytes).value()) == bytes);
    const auto layouts = layout_groups(after, cut, rank, policy, lists);
    ANNULUS_CHECK(layouts.size() == cut.groups.size());
  }
  for (const Item& item : plan.items) {
    int64_t rows = 0;
    for (const auto& spans : shard_item(with_ops, item)) rows += count(spans);
    ANNULUS_CHECK(rows == item.count(), rows, " of ", item.count());
    for (const Wanted& wanted : item.wanted) {
      const int32_t rank = owner(with_ops, item, wanted.position);
      ANNULUS_CHECK(rank >= 0 && rank < before.cp, rank);
    }
  }
  for (const auto& [id, slot] : after.slots) {
    int64_t rows = 0;
    for (const auto& spans : slot.ranks) rows += count(spans);
    ANNULUS_CHECK(rows == slot.length, "slot ", id, ": ", rows, " of ", slot.length);
  }
  const auto copy = decode_shard_state(encode(after));
  ANNULUS_CHECK(copy.ok(), std::string(copy.status().message()));
  ANNULUS_CHECK(*copy == after);
}

}  // namespace
}  // namespace annulus::fuzz

ANNULUS_FUZZ_TARGET(step_plan) {
  std::string_view rest = text_of(data, size);
  decode_alone(rest);
  if (rest.empty()) return;
  parallel::ShardState state;
  state.cp = 1 + static_cast<uint8_t>(rest[0]) % 5;
  rest.remove_prefix(1);
  for (int plans = 0; !rest.empty() && plans < 64; ++plans) {
    const std::string_view bytes = next_message(rest);
    decode_alone(bytes);
    auto plan = parallel::decode_plan(bytes);
    if (!plan.ok()) {
      check_error(plan.status());
      continue;
    }
    // A NaN equals nothing: compare bytes, not plans.
    ANNULUS_CHECK(parallel::encode(*plan) == bytes);
    plan->digest = state.digest;  // else no mutated plan would get any further
    for (int32_t rank = 0; rank < state.cp; ++rank)
      if (const auto status = validate(state, *plan, rank); !status.ok()) check_error(status);
    if (const auto status = validate(state, *plan); !status.ok()) {
      check_error(status);
      continue;
    }
    check_shards(state, *plan);
    state = parallel::advance(std::move(state), *plan);
  }
}
