// SPDX-License-Identifier: Apache-2.0
// Limits of a rank, measured by all ranks at the same moment, and the least time that work can take
// under them: each part of it at its limit, everything else hidden behind the slowest part. PURE.
#pragma once

#include <cstdint>

#include "parallel/ring_policy.h"

namespace annulus::bench {

struct Limits {                  // of one rank
  double flops_per_us = 1;       // multiply-adds from registers, in the type that the weights use
  double read_bytes_per_us = 1;  // from memory
  double link_bytes_per_us = 1;  // a hop, both directions busy
  double link_latency_us = 0;    // of a small message
};

// Memory that the linear layers of one rank hold, all layers together.
struct LinearBytes {
  int64_t qkv = 0, o = 0, gate_up = 0, down = 0, head = 0;
};

struct Demand {  // of one rank
  double flop = 0, bytes = 0, sent_bytes = 0, messages = 0;
};

enum class Resource : uint8_t { kMultiply, kMemory, kLink };
const char* name(Resource resource);

struct Bound {
  double us = 0;
  Resource by = Resource::kMultiply;
};
Bound bound(const Limits& limits, const Demand& demand);

// Attention of a step, all layers, the mean of the ranks: causal pairs, KV read once where it lies.
Demand attention_demand(const parallel::PolicyInput& policy, const parallel::Load& load);
// With its transfers: bytes_sent, in messages that wait for each other (N - 1 hops; one round of
// gathering; one of returning).
Demand ring_demand(const parallel::PolicyInput& policy, const parallel::Load& load,
                   parallel::Variant variant, double bytes_sent);

}  // namespace annulus::bench
