// SPDX-License-Identifier: Apache-2.0
// decode_key: which decode steps ask for the same work. Equal keys mean the same shapes on every
// rank, as far as a plan tells, so that all ranks see equal keys in equal steps: what
// CudaQueue::repeat asks of ranks that exchange. Contexts' lengths are no part of it.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/ring_attention.h"
#include "parallel/step.h"

namespace annulus::parallel {

// 0: nothing that comes again: more than a position of an item, or payloads of KV travel, which
// grow. Of this process alone.
uint64_t decode_key(const StepPlan& plan, std::span<const GroupLayout> layouts);

}  // namespace annulus::parallel
