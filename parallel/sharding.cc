// SPDX-License-Identifier: Apache-2.0
#include "parallel/sharding.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/core/check.h"

namespace annulus::parallel {
namespace {

// Appends positions of one rank, keeping the form that SlotShard::ranks promises. It depends on
// positions alone: only the first of `more` can continue the last span, and where it does so with
// another stride, or is a span of one, the rest starts a span of its own.
void append(std::vector<Span>& spans, Span more, int32_t cp) {
  if (more.count == 0) return;
  if (more.count == 1) more.stride = 1;
  if (!spans.empty()) {
    Span& last = spans.back();
    const int64_t gap = more.first - last.last();
    ANNULUS_CHECK(gap > 0, "position ", more.first, " after ", last.last());
    const bool joins = last.count == 1 ? gap == 1 || gap == cp : gap == last.stride;
    if (joins) {
      last.stride = static_cast<int32_t>(gap);
      const bool all = more.count == 1 || more.stride == last.stride;
      last.count += all ? more.count : 1;
      if (all) return;
      more = {more.first + more.stride, more.count - 1, more.stride};
      if (more.count == 1) more.stride = 1;
    }
  }
  spans.push_back(more);
}

void truncate(std::vector<Span>& spans, int64_t length) {
  while (!spans.empty() && spans.back().first >= length) spans.pop_back();
  if (spans.empty() || spans.back().last() < length) return;
  Span& last = spans.back();
  last.count = static_cast<int32_t>((length - 1 - last.first) / last.stride + 1);
  if (last.count == 1) last.stride = 1;
}

// Positions of [first, first + count) that decode on this rank.
Span decode_span(int32_t decode_base, const Span& span, int32_t rank, int32_t ranks) {
  const int64_t skip = (rank - decode_owner(decode_base, span.first, ranks) + ranks) % ranks;
  if (skip >= span.count) return {span.first, 0, 1};
  const auto n = static_cast<int32_t>((span.count - 1 - skip) / ranks + 1);
  return {span.first + skip, n, ranks};
}

// Rows of one span of an item on one rank, in storage order.
std::array<Span, 2> split(Placement placement, int32_t decode_base, const Span& span, int32_t rank,
                          int32_t ranks) {
  ANNULUS_CHECK(span.stride == 1, "stride ", span.stride, " in a plan");
  if (placement == Placement::kPrompt) return zigzag(span.first, span.count, rank, ranks);
  return {decode_span(decode_base, span, rank, ranks), Span{span.first, 0, 1}};
}

const SlotShard& slot_of(const ShardState& state, int32_t slot) {
  const auto found = state.slots.find(slot);
  ANNULUS_CHECK(found != state.slots.end(), "no slot ", slot);
  return found->second;
}

// Rolling digest: each word is mixed into all bits (the finaliser of splitmix64) before the next.
class Digest {
 public:
  explicit Digest(uint64_t start) : h_(start) {}

  Digest& add(uint64_t word) {
    h_ = (h_ ^ word) + 0x9e3779b97f4a7c15u;
    h_ = (h_ ^ (h_ >> 30)) * 0xbf58476d1ce4e5b9u;
    h_ = (h_ ^ (h_ >> 27)) * 0x94d049bb133111ebu;
    h_ ^= h_ >> 31;
    return *this;
  }
  Digest& add(int64_t word) { return add(static_cast<uint64_t>(word)); }
  Digest& add(int32_t word) { return add(int64_t{word}); }
  Digest& add(float word) { return add(uint64_t{std::bit_cast<uint32_t>(word)}); }
  Digest& add(size_t count, char tag) {
    return add(uint64_t{static_cast<unsigned char>(tag)}).add(uint64_t{count});
  }
  uint64_t value() const { return h_; }

 private:
  uint64_t h_;
};

uint64_t digest_of(uint64_t start, const Op& op) {
  Digest d(start);
  d.add(static_cast<size_t>(op.kind), 'o').add(op.slot).add(op.from).add(op.length);
  d.add(op.decode_base).add(op.sampling.temperature).add(op.sampling.top_k);
  d.add(op.sampling.top_p).add(op.sampling.min_p).add(op.sampling.seed);
  return d.value();
}

// Without token ids: no rank has them all.
uint64_t digest_of(uint64_t start, const Item& item) {
  Digest d(start);
  d.add(static_cast<size_t>(item.placement), 'i').add(item.slot);
  d.add(item.sampled.step).add(item.sampled.row).add(item.spans.size(), 's');
  for (const Span& span : item.spans) d.add(span.first).add(span.count).add(span.stride);
  d.add(item.wanted.size(), 'w');
  for (const Wanted& wanted : item.wanted) {
    d.add(wanted.position).add(int32_t{wanted.sample}).add(wanted.target).add(wanted.top);
    d.add(int32_t{wanted.logprob});
  }
  return d.value();
}

uint64_t digest_of(uint64_t start, const Group& group) {
  Digest d(start);
  d.add(static_cast<size_t>(group.variant), 'g').add(group.items.size(), 'n');
  for (const int32_t item : group.items) d.add(item);
  return d.value();
}

void apply(ShardState& state, const Op& op) {
  const auto found = state.slots.find(op.slot);
  const bool creates = op.kind == Op::Kind::kAdmit || op.kind == Op::Kind::kFork;
  ANNULUS_CHECK((found == state.slots.end()) == creates, "slot ", op.slot,
                creates ? " is taken" : " does not exist");
  switch (op.kind) {
    case Op::Kind::kAdmit:
      state.slots[op.slot] = {0, op.decode_base, op.sampling,
                              std::vector<std::vector<Span>>(static_cast<size_t>(state.cp))};
      break;
    case Op::Kind::kSampling: found->second.sampling = op.sampling; break;
    case Op::Kind::kRebase: found->second.decode_base = op.decode_base; break;
    case Op::Kind::kTruncate:
      ANNULUS_CHECK(op.length >= 0 && op.length <= found->second.length, "slot ", op.slot,
                    " length ", op.length);
      found->second.length = op.length;
      for (auto& spans : found->second.ranks) truncate(spans, op.length);
      break;
    case Op::Kind::kFork: {
      SlotShard copy = slot_of(state, op.from);
      ANNULUS_CHECK(op.length >= 0 && op.length <= copy.length, "slot ", op.from, " length ",
                    op.length);
      copy.length = op.length;
      for (auto& spans : copy.ranks) truncate(spans, op.length);
      state.slots[op.slot] = std::move(copy);
      break;
    }
    case Op::Kind::kRelease: state.slots.erase(found); break;
  }
  state.digest = digest_of(state.digest, op);
}

}  // namespace

std::array<Span, 2> zigzag(int64_t first, int64_t count, int32_t rank, int32_t ranks) {
  const int64_t chunks = int64_t{2} * ranks, even = count / chunks, rest = count % chunks;
  const auto chunk = [&](int64_t c) {
    return Span{first + c * even + std::min(c, rest), static_cast<int32_t>(even + (c < rest)), 1};
  };
  return {chunk(rank), chunk(chunks - 1 - rank)};
}

int32_t decode_owner(int32_t decode_base, int64_t position, int32_t ranks) {
  return static_cast<int32_t>((decode_base + position) % ranks);
}

int64_t count(std::span<const Span> spans) {
  int64_t n = 0;
  for (const Span& span : spans) n += span.count;
  return n;
}

std::vector<int32_t> positions(std::span<const Span> spans) {
  std::vector<int32_t> all;
  all.reserve(static_cast<size_t>(count(spans)));
  for (const Span& span : spans) {
    for (int32_t i = 0; i < span.count; ++i) {
      all.push_back(static_cast<int32_t>(span.first + int64_t{i} * span.stride));
    }
  }
  return all;
}

void apply_ops(ShardState& state, const StepPlan& plan) {
  for (const Op& op : plan.ops) apply(state, op);
}

ShardState advance(ShardState state, const StepPlan& plan) {
  apply_ops(state, plan);
  for (const Item& item : plan.items) {
    const auto fresh = shard_item(state, item);
    SlotShard& slot = state.slots.at(item.slot);
    for (size_t r = 0; r < fresh.size(); ++r) {
      for (const Span& span : fresh[r]) append(slot.ranks[r], span, state.cp);
    }
    slot.length += item.count();
    state.digest = digest_of(state.digest, item);
  }
  for (const Group& group : plan.groups) state.digest = digest_of(state.digest, group);
  return state;
}

std::vector<std::vector<Span>> shard_item(const ShardState& state, const Item& item) {
  const int32_t base = slot_of(state, item.slot).decode_base;
  std::vector<std::vector<Span>> ranks(static_cast<size_t>(state.cp));
  for (const Span& span : item.spans) {
    for (int32_t r = 0; r < state.cp; ++r) {
      for (const Span& part : split(item.placement, base, span, r, state.cp)) {
        append(ranks[static_cast<size_t>(r)], part, state.cp);
      }
    }
  }
  return ranks;
}

int32_t owner(const ShardState& state, const Item& item, int64_t position) {
  const int32_t base = slot_of(state, item.slot).decode_base;
  for (const Span& span : item.spans) {
    if (position < span.first || position > span.last()) continue;
    if (item.placement == Placement::kDecode) return decode_owner(base, position, state.cp);
    for (int32_t r = 0; r < state.cp; ++r) {
      for (const Span& part : zigzag(span.first, span.count, r, state.cp)) {
        if (position >= part.first && position < part.first + part.count) return r;
      }
    }
  }
  ANNULUS_CHECK(false, "position ", position, " is not in the item of slot ", item.slot);
  return 0;
}

std::vector<int32_t> tokens_of(const ShardState& state, const Item& item, int32_t rank) {
  std::vector<int32_t> tokens;
  if (item.sampled.step >= 0) return tokens;
  ANNULUS_CHECK(static_cast<int64_t>(item.tokens.size()) == item.count(), item.tokens.size(),
                " tokens for ", item.count(), " positions");
  const int32_t base = slot_of(state, item.slot).decode_base;
  auto span_tokens = item.tokens.begin();
  for (const Span& span : item.spans) {
    for (const Span& part : split(item.placement, base, span, rank, state.cp)) {
      for (int32_t i = 0; i < part.count; ++i) {
        tokens.push_back(span_tokens[part.first - span.first + int64_t{i} * part.stride]);
      }
    }
    span_tokens += span.count;
  }
  return tokens;
}

StepPlan plan_for_rank(const ShardState& state, const StepPlan& plan, int32_t rank) {
  StepPlan cut = {plan.epoch, plan.step, plan.layout_id, plan.digest, plan.ops, {}, plan.groups};
  cut.items.reserve(plan.items.size());
  for (const Item& item : plan.items) {
    cut.items.push_back({item.slot, item.placement, item.spans, tokens_of(state, item, rank),
                         item.sampled, item.wanted});
  }
  return cut;
}

std::vector<int64_t> q_rows(const ShardState& after, const StepPlan& plan, const Group& group) {
  std::vector<int64_t> rows(static_cast<size_t>(after.cp), 0);
  for (const int32_t i : group.items) {
    const auto fresh = shard_item(after, plan.items[static_cast<size_t>(i)]);
    for (size_t r = 0; r < rows.size(); ++r) rows[r] += count(fresh[r]);
  }
  return rows;
}

std::vector<int64_t> kv_rows(const ShardState& after, const StepPlan& plan, const Group& group) {
  std::vector<int64_t> rows(static_cast<size_t>(after.cp), 0);
  for (const int32_t i : group.items) {
    const SlotShard& slot = slot_of(after, plan.items[static_cast<size_t>(i)].slot);
    for (size_t r = 0; r < rows.size(); ++r) rows[r] += count(slot.ranks[r]);
  }
  return rows;
}

}  // namespace annulus::parallel
