// SPDX-License-Identifier: Apache-2.0
// What the phases of one step ask of a rank: multiply-adds, and bytes to and from memory. The mean
// of the ranks, whose rows differ by one at most. Linear layers read their weights once and their
// activations not at all (they are in a cache); everything that works on rows reads and writes them
// as if they came from memory. PURE.
#pragma once

#include <array>

#include "bench/limits.h"
#include "kernels/core/phase.h"
#include "parallel/model/config.h"
#include "parallel/topology.h"

namespace annulus::bench {

struct StepWork {
  parallel::Load load;  // of each sequence
  int64_t sequences = 1;
  parallel::Variant variant = parallel::Variant::kPassKv;  // one token of each is sampled
};

// By kernels::Phase; nothing for what is not bound to work: waiting, sending, sampling, planning.
using StepDemands = std::array<Demand, kernels::kPhases>;
StepDemands step_demands(const parallel::LlamaConfig& config, const parallel::Topology& topology,
                         const parallel::PolicyInput& policy, const LinearBytes& linear,
                         const StepWork& work);

// Of a rank, all layers: partials that go back to who asked (pass-Q, gather-Q).
double returned_bytes(const parallel::PolicyInput& policy, const StepWork& work);

}  // namespace annulus::bench
