// SPDX-License-Identifier: Apache-2.0
// validate() of sharding.h: every rule by which a StepPlan can be impossible, one clear line each.
// Plans come over a network, so no value in them is trusted before it was compared.
#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/core/check.h"
#include "parallel/sharding.h"

namespace annulus::parallel {
namespace {

using kernels::concat;

template <class... Args>
absl::Status invalid(const Args&... args) {
  return absl::InvalidArgumentError(concat(args...));
}

// What the rules need to know of a slot: the ops are tried on this, not on the state.
struct SlotSketch {
  int64_t length = 0;
  int32_t decode_base = 0;
};
using Sketch = std::map<int32_t, SlotSketch>;

absl::Status check_sampling(const SamplingParams& s) {
  if (!std::isfinite(s.temperature) || s.temperature < 0) {
    return invalid("temperature is ", s.temperature, ", must be at least 0");
  }
  if (s.top_k < 0) return invalid("top_k is ", s.top_k, ", must be at least 0");
  if (!(s.top_p > 0 && s.top_p <= 1)) return invalid("top_p is ", s.top_p, ", must be in (0, 1]");
  if (!(s.min_p >= 0 && s.min_p <= 1)) return invalid("min_p is ", s.min_p, ", must be in [0, 1]");
  return absl::OkStatus();
}

absl::Status check_length(const Op& op, int64_t longest) {
  if (op.length < 0 || op.length > longest) {
    return invalid("length is ", op.length, ", the slot has ", longest);
  }
  return absl::OkStatus();
}

absl::Status check_base(const Op& op, int32_t cp) {
  if (op.decode_base < 0 || op.decode_base >= cp) {
    return invalid("decode_base is ", op.decode_base, ", must be in [0, ", cp, ")");
  }
  return absl::OkStatus();
}

absl::Status try_op(Sketch& slots, const Op& op, int32_t cp) {
  if (op.slot < 0) return invalid("slot ", op.slot, " is negative");
  const auto found = slots.find(op.slot);
  const bool exists = found != slots.end();
  const bool creates = op.kind == Op::Kind::kAdmit || op.kind == Op::Kind::kFork;
  if (creates && exists) return invalid("slot ", op.slot, " is taken");
  if (!creates && !exists) return invalid("slot ", op.slot, " does not exist");
  absl::Status status;
  switch (op.kind) {
    case Op::Kind::kAdmit:
      status = check_base(op, cp);
      if (status.ok()) status = check_sampling(op.sampling);
      if (status.ok()) slots[op.slot] = {0, op.decode_base};
      return status;
    case Op::Kind::kSampling: return check_sampling(op.sampling);
    case Op::Kind::kRebase:
      status = check_base(op, cp);
      if (status.ok()) found->second.decode_base = op.decode_base;
      return status;
    case Op::Kind::kTruncate:
      status = check_length(op, found->second.length);
      if (status.ok()) found->second.length = op.length;
      return status;
    case Op::Kind::kFork: {
      const auto from = slots.find(op.from);
      if (from == slots.end()) return invalid("slot ", op.from, " does not exist");
      status = check_length(op, from->second.length);
      if (status.ok()) slots[op.slot] = {op.length, from->second.decode_base};
      return status;
    }
    case Op::Kind::kRelease: slots.erase(found); return status;
  }
  return invalid("unknown kind ", int{static_cast<uint8_t>(op.kind)});
}

// Spans go on where the slot ends, without a gap; several are chunks, each sharded on its own.
absl::Status check_spans(const Item& item, int64_t length) {
  if (item.spans.empty()) return invalid("no spans");
  int64_t next = length;
  for (const Span& span : item.spans) {
    if (span.count < 1) return invalid("a span counts ", span.count);
    if (span.stride != 1) return invalid("a span has stride ", span.stride, ", plans have 1");
    if (span.first != next) {
      return invalid("a span begins at position ", span.first, ", slot ", item.slot, " ends at ",
                     next);
    }
    next += span.count;
    if (next > kMaxPositions) return invalid("position ", next - 1, " is too large");
  }
  return absl::OkStatus();
}

absl::Status check_tokens(const Item& item, const SlotSketch& slot, const StepPlan& plan,
                          int32_t cp, int32_t rank) {
  int64_t expected = item.count();
  if (item.sampled.step >= 0) {
    if (item.sampled.step >= plan.step) {
      return invalid("its token is sampled in step ", item.sampled.step, ", this is step ",
                     plan.step);
    }
    if (item.sampled.row < 0) return invalid("its token is sampled in row ", item.sampled.row);
    if (expected != 1) return invalid("one sampled token for ", expected, " positions");
    expected = 0;
  } else if (item.sampled.step != -1) {
    return invalid("its token is sampled in step ", item.sampled.step);
  } else if (rank != kAllRanks) {
    ShardState state{.cp = cp, .digest = 0, .slots = {}};
    state.slots[item.slot].decode_base = slot.decode_base;
    expected = count(shard_item(state, item)[static_cast<size_t>(rank)]);
  }
  const auto tokens = static_cast<int64_t>(item.tokens.size());
  if (tokens != expected) return invalid(tokens, " tokens, ", expected, " expected");
  for (const int32_t token : item.tokens) {
    if (token < 0) return invalid("token id ", token, " is negative");
  }
  return absl::OkStatus();
}

absl::Status check_wanted(const Item& item) {
  const int64_t first = item.spans.front().first, last = item.spans.back().last();
  int64_t previous = -1;
  for (const Wanted& wanted : item.wanted) {
    if (wanted.position < first || wanted.position > last) {
      return invalid("wanted position ", wanted.position, " is not in [", first, ", ", last, "]");
    }
    if (wanted.position <= previous) {
      return invalid("wanted position ", wanted.position, " after ", previous);
    }
    previous = wanted.position;
    if (wanted.target < -1) return invalid("wanted target ", wanted.target, " is negative");
    if (wanted.top < 0 || wanted.top > kMaxTop) {
      return invalid("wanted top ", wanted.top, " is not in [0, ", kMaxTop, "]");
    }
  }
  return absl::OkStatus();
}

absl::Status check_groups(const StepPlan& plan) {
  std::vector<bool> grouped(plan.items.size(), false);
  bool used[kVariants] = {};
  for (const Group& group : plan.groups) {
    const auto variant = static_cast<size_t>(group.variant);
    if (variant >= size_t{kVariants}) return invalid("group with unknown variant ", variant);
    if (used[variant]) return invalid("two groups of ", name(group.variant));
    used[variant] = true;
    if (group.items.empty()) return invalid("the group of ", name(group.variant), " is empty");
    for (const int32_t item : group.items) {
      if (item < 0 || static_cast<size_t>(item) >= plan.items.size()) {
        return invalid("the group of ", name(group.variant), " names item ", item, " of ",
                       plan.items.size());
      }
      const auto i = static_cast<size_t>(item);
      if (grouped[i]) return invalid("item ", item, " is in two groups");
      grouped[i] = true;
    }
  }
  const auto lost = std::find(grouped.begin(), grouped.end(), false);
  if (lost != grouped.end()) return invalid("item ", lost - grouped.begin(), " is in no group");
  return absl::OkStatus();
}

absl::Status in(const char* what, size_t index, const absl::Status& status) {
  return invalid(what, " ", index, ": ", std::string(status.message()));
}

}  // namespace

absl::Status validate(const ShardState& state, const StepPlan& plan, int32_t rank) {
  ANNULUS_CHECK(rank >= kAllRanks && rank < state.cp, "rank ", rank, " of ", state.cp);
  if (plan.digest != state.digest) {
    return absl::FailedPreconditionError(concat("step ", plan.step, ": the plan follows state ",
                                                plan.digest, ", this rank has ", state.digest));
  }
  if (plan.epoch < 0) return invalid("epoch ", plan.epoch, " is negative");
  if (plan.step < 0) return invalid("step ", plan.step, " is negative");
  if (plan.layout_id != 0)
    return invalid("layout ", plan.layout_id, " is not in the epoch's table");

  Sketch slots;
  for (const auto& [id, slot] : state.slots) slots[id] = {slot.length, slot.decode_base};
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    if (auto status = try_op(slots, plan.ops[i], state.cp); !status.ok()) {
      return in("op", i, status);
    }
  }
  std::map<int32_t, size_t> item_of_slot;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const Item& item = plan.items[i];
    const auto slot = slots.find(item.slot);
    absl::Status status;
    if (slot == slots.end()) {
      status = invalid("slot ", item.slot, " does not exist");
    } else if (const auto [other, added] = item_of_slot.try_emplace(item.slot, i); !added) {
      status = invalid("slot ", item.slot, " is also that of item ", other->second);
    } else if (item.placement != Placement::kPrompt && item.placement != Placement::kDecode) {
      status = invalid("unknown placement ", int{static_cast<uint8_t>(item.placement)});
    }
    if (status.ok()) status = check_spans(item, slot->second.length);
    if (status.ok()) status = check_tokens(item, slot->second, plan, state.cp, rank);
    if (status.ok()) status = check_wanted(item);
    if (!status.ok()) return in("item", i, status);
  }
  return check_groups(plan);
}

}  // namespace annulus::parallel
