// SPDX-License-Identifier: Apache-2.0
// Wire form of ShardState, for a rank that joins later or a front end that restarts: magic,
// version, then the fields. What decodes is a state that the functions of sharding.h accept.
#include <algorithm>

#include "parallel/model/bytes.h"
#include "parallel/sharding.h"

namespace annulus::parallel {
namespace {

constexpr uint32_t kMagic = 0x534e4e41;  // "ANNS"
constexpr uint16_t kVersion = 1;
constexpr int32_t kMaxRanks = 1 << 16;
constexpr size_t kSpanBytes = 16, kSlotBytes = 4 + 8 + 4 + 24;

// Spans ascend, and none continues the one before it: the one form of sharding.h.
bool well_formed(const std::vector<Span>& spans, int32_t cp) {
  for (size_t i = 0; i < spans.size(); ++i) {
    const Span& span = spans[i];
    const bool stride = span.stride == 1 || (span.stride == cp && span.count > 1);
    if (span.first < 0 || span.count < 1 || !stride || span.first >= kMaxPositions ||
        span.last() >= kMaxPositions) {
      return false;
    }
    if (i == 0) continue;
    const Span& before = spans[i - 1];
    const int64_t gap = span.first - before.last();
    const bool joins = before.count == 1 ? gap == 1 || gap == cp : gap == before.stride;
    if (gap <= 0 || joins) return false;
  }
  return true;
}

SlotShard get_slot(ByteReader& in, int32_t cp) {
  SlotShard slot;
  slot.length = in.get<int64_t>("slot.length");
  slot.decode_base = in.get<int32_t>("slot.decode_base");
  slot.sampling.temperature = in.get<float>("slot.sampling.temperature");
  slot.sampling.top_k = in.get<int32_t>("slot.sampling.top_k");
  slot.sampling.top_p = in.get<float>("slot.sampling.top_p");
  slot.sampling.min_p = in.get<float>("slot.sampling.min_p");
  slot.sampling.seed = in.get<uint64_t>("slot.sampling.seed");
  if (slot.decode_base < 0 || slot.decode_base >= cp) {
    in.fail("slot.decode_base", "is no rank");
  }
  int64_t rows = 0;
  for (int32_t r = 0; r < cp && in.ok(); ++r) {
    std::vector<Span>& spans = slot.ranks.emplace_back(in.get_count("slot.spans", kSpanBytes));
    for (Span& span : spans) {
      span.first = in.get<int64_t>("span.first");
      span.count = in.get<int32_t>("span.count");
      span.stride = in.get<int32_t>("span.stride");
    }
    if (!well_formed(spans, cp)) in.fail("slot.spans", "do not ascend");
    if (!spans.empty() && spans.back().last() >= slot.length) {
      in.fail("slot.spans", "go beyond the slot's length");
    }
    rows += count(spans);
  }
  if (rows != slot.length) in.fail("slot.length", "is not the number of its rows");
  return slot;
}

}  // namespace

std::string encode(const ShardState& state) {
  ByteWriter out;
  out.put(kMagic);
  out.put(kVersion);
  out.put(state.cp);
  out.put(state.digest);
  out.put_count(state.slots.size());
  for (const auto& [id, slot] : state.slots) {
    out.put(id);
    out.put(slot.length);
    out.put(slot.decode_base);
    out.put(slot.sampling.temperature);
    out.put(slot.sampling.top_k);
    out.put(slot.sampling.top_p);
    out.put(slot.sampling.min_p);
    out.put(slot.sampling.seed);
    for (const auto& spans : slot.ranks) {
      out.put_count(spans.size());
      for (const Span& span : spans) {
        out.put(span.first);
        out.put(span.count);
        out.put(span.stride);
      }
    }
  }
  return out.take();
}

absl::StatusOr<ShardState> decode_shard_state(std::string_view bytes) {
  ByteReader in(bytes, "shard state");
  if (in.get<uint32_t>("magic") != kMagic) in.fail("magic", "is not that of this message");
  const auto version = in.get<uint16_t>("version");
  if (version != kVersion) {
    in.fail("version", kernels::concat("is ", version, ", this program speaks ", kVersion));
  }
  ShardState state;
  state.cp = in.get<int32_t>("cp");
  if (state.cp < 1 || state.cp > kMaxRanks) in.fail("cp", "is out of range");
  state.digest = in.get<uint64_t>("digest");
  const size_t slots = in.get_count("slots", kSlotBytes);
  int32_t previous = -1;
  for (size_t i = 0; i < slots && in.ok(); ++i) {
    const auto id = in.get<int32_t>("slot");
    if (id <= previous) in.fail("slot", "does not ascend");
    previous = id;
    state.slots[id] = get_slot(in, state.cp);
  }
  if (absl::Status status = in.finish(); !status.ok()) return status;
  return state;
}

}  // namespace annulus::parallel
