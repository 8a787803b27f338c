// SPDX-License-Identifier: Apache-2.0
// What one rank of a layout holds, in bytes, for a context: the same formulas as weights.cc,
// rank_inl.h and ring_policy allocate by, without allocating. PURE. For `annulus plan` and for GPUs
// before they load; tests hold it to the engine. Not counted: what the runtime takes (CUDA context
// and graphs, NCCL buffers, code).
#pragma once

#include <cstdint>

#include "kernels/weight.h"
#include "parallel/model/checkpoint.h"
#include "parallel/topology.h"

namespace annulus::parallel {

struct MemoryQuestion {
  Topology topology;
  int64_t context = 0;  // tokens that all sequences together may hold
  int64_t kv_rows = 0;  // KV rows of a rank; 0: what the context needs
  kernels::Precision precision = kernels::Precision::kDefault;
  bool gpu = false;              // holds the embedding too, and bf16 where CPUs hold blocks
  int64_t chunk_tokens = 32768;  // of a prompt in one step
  int32_t page_tokens = 64;
  int64_t workspace_limit_bytes = int64_t{256} << 20;
};

struct RankMemory {
  int64_t weight_bytes = 0, kv_bytes = 0;
  int64_t activation_bytes = 0;  // of a chunk's rows on one rank, and their logits
  int64_t workspace_bytes = 0;   // payloads and partials of the ring, at most the limit
  int64_t total() const { return weight_bytes + kv_bytes + activation_bytes + workspace_bytes; }
};

// topology.tp passes check_tp; context, cp and chunk_tokens are at least 1.
RankMemory rank_memory(const Checkpoint& checkpoint, const MemoryQuestion& question);

}  // namespace annulus::parallel
