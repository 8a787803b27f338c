// SPDX-License-Identifier: Apache-2.0
// The machine profile: rates of this rank's attention, linear layers, packing, merging and link,
// measured at the start of an epoch while all ranks run at once, as they will. Collective over all
// ranks; every rank returns the same numbers, those of the slowest. About half a second, and one to
// two where cuDNN's attention is compiled first. Called by Rank::measure. Defined in measure_inl.h.
#pragma once

#include "kernels/attention.h"
#include "parallel/communicator.h"
#include "parallel/model/weights.h"
#include "parallel/ring_policy.h"

namespace annulus::parallel {

template <class Queue>
MachineProfile measure_machine(Queue& queue, Groups<Queue> groups, const AttentionShape& shape,
                               const LlamaWeights<Queue>& weights);

}  // namespace annulus::parallel
