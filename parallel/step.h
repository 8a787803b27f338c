// SPDX-License-Identifier: Apache-2.0
// StepPlan: what all ranks do in one step; StepResult: what one rank answers. The seam between
// server (decides) and parallel (executes). Plans are complete and small: positions, owners and
// payload sizes are derived from them by pure functions (parallel/sharding.h), never sent. Rank
// state is a fold over the plan log; `digest` is the sender's ShardState digest before this plan,
// and a rank whose own differs has drifted (fatal). Steps are pipelined: a decode item of plan k+1
// may name its input as sampled{k, row} and be sent before k's result is known. Encoding:
// versioned, little-endian, bounds-checked; a plan encoded for a rank carries only the token ids
// that rank computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::parallel {

enum class Variant : uint8_t { kPassKv = 0, kPassQ = 1, kGatherQ = 2 };
inline constexpr int32_t kVariants = 3;
const char* name(Variant variant);  // "pass-kv", "pass-q", "gather-q"
absl::StatusOr<Variant> parse_variant(std::string_view text);

struct SamplingParams {
  float temperature = 0;  // 0: greedy; argmax ties go to the smaller id
  int32_t top_k = 0;      // 0: off
  float top_p = 1;        // 1: off
  float min_p = 0;        // 0: off
  uint64_t seed = 0;      // random numbers are Philox(seed, position)
  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

// Applied before the items, in order.
struct Op {
  enum class Kind : uint8_t {
    kAdmit = 0,
    kSampling = 1,
    kTruncate = 2,
    kFork = 3,
    kRelease = 4,
    kRebase = 5
  };
  Kind kind = Kind::kAdmit;
  int32_t slot = 0;
  int32_t from =
      0;  // kFork: slot that is copied; `slot` is new and takes its sampling and decode base
  int64_t length = 0;       // kTruncate, kFork: positions [0, length) stay
  int32_t decode_base = 0;  // kAdmit: owner of a decoded token = (decode_base + position) mod cp;
                            // kRebase: for tokens from now on (a new turn, or rows to even out)
  SamplingParams sampling;  // kAdmit, kSampling
  friend bool operator==(const Op&, const Op&) = default;
};

// Consecutive positions first, first + stride, ... of a sequence.
struct Span {
  int64_t first = 0;
  int32_t count = 0, stride = 1;
  int64_t last() const { return first + int64_t{count - 1} * stride; }
  friend bool operator==(const Span&, const Span&) = default;
};

enum class Placement : uint8_t {
  kPrompt = 0,  // zigzag over the CP ranks
  kDecode = 1,  // position p belongs to rank (decode_base + p) mod cp
};

// What to compute from the logits at a position (which predict the next token).
struct Wanted {
  int64_t position = 0;
  bool sample = false;  // sample a token; gets a row number (order of sample == true over the plan)
  int32_t target = -1;  // report the log-probability of this id; -1: none
  int32_t top = 0;      // report the most likely ids, at most kMaxTop
  bool logprob = false;  // report the sampled token's log-probability: a pass over the vocabulary
  friend bool operator==(const Wanted&, const Wanted&) = default;
};
inline constexpr int32_t kMaxTop = 128;

struct SampledRef {
  int64_t step = -1;  // -1: the item has inline tokens
  int32_t row = 0;
  friend bool operator==(const SampledRef&, const SampledRef&) = default;
};

struct Item {
  int32_t slot = 0;
  Placement placement = Placement::kPrompt;
  std::vector<Span>
      spans;  // positions to compute, ascending, appended to the slot's KV (stride 1 in plans)
  std::vector<int32_t> tokens;  // front end: all, in span order; after encode for a rank: that
                                // rank's, in storage order
  SampledRef sampled;           // or: one position whose id an earlier step sampled
  std::vector<Wanted> wanted;   // ascending positions, within spans
  int64_t count() const {
    int64_t n = 0;
    for (const Span& s : spans) n += s.count;
    return n;
  }
  friend bool operator==(const Item&, const Item&) = default;
};

// Items that run attention together; at most one group per variant; every item is in exactly one.
struct Group {
  Variant variant = Variant::kPassKv;
  std::vector<int32_t> items;
  friend bool operator==(const Group&, const Group&) = default;
};

struct StepPlan {
  int64_t epoch = 0, step = 0;
  int32_t layout_id = 0;  // index into the epoch's layouts; one entry now
  uint64_t digest = 0;
  std::vector<Op> ops;
  std::vector<Item> items;
  std::vector<Group> groups;
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

struct TopLogprob {
  int32_t id = 0;
  float logprob = 0;
  friend bool operator==(const TopLogprob&, const TopLogprob&) = default;
};

struct WantedResult {
  int32_t item = 0;
  int64_t position = 0;
  int32_t token = -1;  // sampled id
  float logprob = 0;   // of token where asked for: natural log of the untempered softmax
  float target_logprob = 0;
  std::vector<TopLogprob> top;  // descending
  friend bool operator==(const WantedResult&, const WantedResult&) = default;
};

struct GroupReport {
  Variant variant = Variant::kPassKv;
  int64_t bytes_sent = 0;  // this rank's payload bytes in ring, gather and all-to-all, all layers
  int64_t formula_bytes = 0;  // what the plan predicts for them (sharding)
  float attend_us = 0;        // computing attention and merges
  float exposed_us = 0;       // waiting for peers
  float all_to_all_us = 0;    // of exposed_us: while partials return; the rest is ring or gather
  friend bool operator==(const GroupReport&, const GroupReport&) = default;
};

struct StepResult {
  int64_t epoch = 0, step = 0;
  int32_t world_rank = 0;
  std::vector<WantedResult> wanted;  // positions this rank owns (tp_rank 0 reports)
  std::vector<GroupReport> groups;
  float step_us = 0;  // from the plan's start to its end on this rank
  float idle_us =
      0;  // from the end of the previous step to this one's start: waiting for the front end
  int32_t plans_waiting = 0;          // plans already here when this step ended
  int64_t kv_rows = 0, kv_bytes = 0;  // in use on this rank
  int64_t workspace_peak_bytes = 0, resident_bytes = 0;
  std::vector<float> phase_us;  // by kernels::Phase; empty unless the rank was told to profile
  float waited_us = 0;  // of step_us, for peers, in every group; 0 on a GPU, where nobody waits
  int32_t rows = 0, logit_rows = 0;  // computed by this rank: through the layers, through the head
  friend bool operator==(const StepResult&, const StepResult&) = default;
};

// Rows (sample == true) of the plan so far: the row number of a Wanted is its index in this order.
std::vector<std::pair<int32_t, int64_t>> sampled_rows(const StepPlan& plan);  // (item, position)

std::string encode(const StepPlan& plan);  // tokens as they are in the plan
absl::StatusOr<StepPlan> decode_plan(std::string_view bytes);
std::string encode(const StepResult& result);
absl::StatusOr<StepResult> decode_result(std::string_view bytes);

}  // namespace annulus::parallel
