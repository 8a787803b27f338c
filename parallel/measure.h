// SPDX-License-Identifier: Apache-2.0
// The machine profile: rates of this rank's attention, linear layers, packing, merging and link,
// measured at the start of an epoch while all ranks run at once, as they will. Collective over all
// ranks; every rank returns the same numbers, those of the slowest. About half a second. Called by
// Rank::measure.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/queue.h"
#include "parallel/communicator.h"
#include "parallel/model/weights.h"
#include "parallel/ring_policy.h"

namespace annulus::parallel {

MachineProfile measure_machine(kernels::CpuQueue& queue, Groups<kernels::CpuQueue> groups,
                               const AttentionShape& shape, const LlamaWeights& weights);

}  // namespace annulus::parallel
