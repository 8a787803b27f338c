// SPDX-License-Identifier: Apache-2.0
// Chooses pass-KV, pass-Q or gather-Q for a group of items. PURE: (items, shape, ranks, profile) ->
// predicted microseconds and workspace per variant. The profile is measured at the start of an
// epoch and frozen in it, so the choice is a function of the plan. Costs per layer over N ranks:
//   visit = work / N + attend_overhead; flight = latency + bytes / link
//   exposed hop = hop_overhead + (1 - overlap) * flight + max(0, overlap * flight - visit)
//   collective = collective_overhead + bytes / collective rate; merge and pack: op_overhead + bytes
//   pass-KV : pack own KV, N visits, N-1 exposed hops of KV
//   pass-Q  : N visits, N-1 exposed hops of q, all-to-all of (o, lse), N-1 merges
//   gather-Q: all-gather of q, the same visits, all-to-all, N-1 merges: no chain of latencies
// Overhead and latency are those of LogP (Culler et al., PPoPP 1993): a rank's own time, which
// hides behind nothing, and time on the way. A collective is no hop: its start and its rate are its
// own, and on a ring of many ranks the difference decides between pass-Q and gather-Q.
// Work of an item on one rank = max(causal FLOP 4 * heads * head_dim * new * (cached + (new+1)/2)
// / rate, KV bytes read / rate) / N. Prompts are even over the ranks (zigzag); an item with fewer
// rows than ranks leaves pass-KV's other ranks idle, but not those of pass-Q and gather-Q, which
// work where the KV lies. Partials travel as fp32: (head_dim + 1) * heads * 4 bytes a row.
// Algorithms 1 and 5 of arXiv 2411.01783 are kept as named baselines to be measured against, never
// as the truth (they contradict its own Table 4).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "parallel/step.h"

namespace annulus::parallel {

// What one rank of this machine does; measured (parallel/measure.h), the slowest rank's figure
// counts.
struct MachineProfile {
  double attend_flops_per_us =
      1e4;  // prefill-like attention, 4 * q * k * heads * head_dim FLOP for all pairs computed
  double kv_read_bytes_per_us = 1e4;     // decode-like attention is bound by reading KV
  double attend_overhead_us = 5;         // per attend call
  double link_bytes_per_us = 1e3;        // a hop in flight, both directions busy
  double link_latency_us = 5;            // a hop in flight, a small message
  double merge_bytes_per_us = 5e3;       // partial bytes cleared and merged
  double pack_bytes_per_us = 5e3;        // KV rows packed into a payload
  double overlap = 1;                    // share of a flight that goes on beside a visit
  double hop_overhead_us = 0;            // a hop's share of the rank's own time, visit or not
  double collective_overhead_us = 5;     // all-to-all or all-gather of next to nothing
  double collective_bytes_per_us = 1e3;  // bytes that a rank sends to all others
  double op_overhead_us = 0;             // per pack, clear and merge
  double linear_us_per_row = 100;  // everything but attention, one row of a prefill, all layers
  double small_hop_us() const { return hop_overhead_us + link_latency_us; }  // nothing beside it
};

// What a rank waits for a hop of the ring: flight_us on the way, beside a visit of visit_us.
double exposed_hop_us(const MachineProfile& profile, double flight_us, double visit_us);

struct AttentionShape {  // of one rank (TP slice)
  int32_t heads = 0, kv_heads = 0, head_dim = 0, layers = 0;
  kernels::DType dtype = kernels::DType::kBF16;
  int32_t partial_bytes = 4;  // an element of o or lse as it travels: fp32
  int64_t q_row_bytes() const { return int64_t{heads} * head_dim * kernels::size_bytes(dtype); }
  int64_t kv_row_bytes() const {
    return int64_t{2} * kv_heads * head_dim * kernels::size_bytes(dtype);
  }
  int64_t partial_row_bytes() const { return int64_t{heads} * (head_dim + 1) * partial_bytes; }
};

struct Load {  // one item
  int64_t n_new = 0, n_cached = 0;
  double miss_rate() const {
    return static_cast<double>(n_new) / static_cast<double>(n_new + n_cached);
  }
};

struct Prediction {
  Variant variant = Variant::kPassKv;
  double us = 0;  // attention of the whole step, all layers
  double attend_us = 0, exposed_us = 0;
  int64_t bytes_sent = 0;       // per rank, all layers (the largest rank's)
  int64_t workspace_bytes = 0;  // per rank: payload buffers and partials
  int32_t blocks = 1;           // row blocks that keep the workspace within its bound
  bool fits = true;
};

struct PolicyInput {
  AttentionShape shape;
  int32_t cp = 1;
  MachineProfile profile;
  int64_t workspace_limit_bytes = int64_t{256} << 20;
};

std::array<Prediction, kVariants> predict(const PolicyInput& input, std::span<const Load> items);
// The fastest that fits; the smallest where nothing fits; ties to the earlier
// variant.
Variant choose(const PolicyInput& input, std::span<const Load> items);

// Items of a step put into at most one group per variant, each item by its own best variant, groups
// ordered by miss rate (highest first). Where the KV of the pass-KV items does not fit together,
// the longest go elsewhere. forced: a variant for all.
std::vector<Group> make_groups(const PolicyInput& input, std::span<const Load> items,
                               const Variant* forced = nullptr);

// Rows of each rank per block such that payloads and partials of one block fit the bound (at least
// 1); a block runs ring and all-to-all for itself. pass-KV is not cut (its rows need no partials of
// others): INT64_MAX. Workspace of pass-KV: own packed rows and two payloads of largest_kv_rows.
int64_t rows_per_block(const PolicyInput& input, Variant variant, int64_t largest_kv_rows);

// The smallest chunk of a long prompt whose hops hide behind its attention with this much cached
// before it (a visit takes at least as long as a flight, in the variant chosen for that chunk), a
// multiple of 2 * cp and at least `least`.
int64_t smallest_efficient_chunk(const PolicyInput& input, int64_t cached, int64_t least);

// Baselines of the paper; C in FLOP/us and BW in bytes/us come from the profile.
Variant paper_algorithm_1(const PolicyInput& input, const Load& load);
Variant paper_algorithm_5(const PolicyInput& input, const Load& load);

}  // namespace annulus::parallel
