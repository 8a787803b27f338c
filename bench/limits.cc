// SPDX-License-Identifier: Apache-2.0
#include "bench/limits.h"

namespace annulus::bench {

const char* name(Resource resource) {
  switch (resource) {
    case Resource::kMultiply: return "multiply";
    case Resource::kMemory: return "memory";
    case Resource::kLink: return "link";
  }
  return "unknown";
}

Bound bound(const Limits& limits, const Demand& demand) {
  Bound most{demand.flop / limits.flops_per_us, Resource::kMultiply};
  const auto also = [&](double us, Resource by) {
    if (us > most.us) most = {us, by};
  };
  also(demand.bytes / limits.read_bytes_per_us, Resource::kMemory);
  also(demand.sent_bytes / limits.link_bytes_per_us + demand.messages * limits.link_latency_us,
       Resource::kLink);
  return most;
}

Demand attention_demand(const parallel::PolicyInput& policy, const parallel::Load& load) {
  const parallel::AttentionShape& shape = policy.shape;
  const auto fresh = static_cast<double>(load.n_new), cached = static_cast<double>(load.n_cached);
  const double pairs = fresh * (cached + (fresh + 1) / 2);
  const double rank_layers = static_cast<double>(shape.layers) / policy.cp;
  return {.flop = 4 * pairs * shape.heads * shape.head_dim * rank_layers,
          .bytes = (fresh + cached) * static_cast<double>(shape.kv_row_bytes()) * rank_layers};
}

Demand ring_demand(const parallel::PolicyInput& policy, const parallel::Load& load,
                   parallel::Variant variant, double bytes_sent) {
  Demand demand = attention_demand(policy, load);
  if (policy.cp == 1) return demand;
  const int32_t there = variant == parallel::Variant::kGatherQ ? 1 : policy.cp - 1;
  const int32_t back = variant == parallel::Variant::kPassKv ? 0 : 1;
  demand.sent_bytes = bytes_sent;
  demand.messages = (there + back) * policy.shape.layers;
  return demand;
}

}  // namespace annulus::bench
