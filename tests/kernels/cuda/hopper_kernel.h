// SPDX-License-Identifier: Apache-2.0
// Two products on a warpgroup, as attention has them, by every function of kernels/cuda/hopper.cuh:
// on a real GPU they prove what the emulated one believes of descriptors, boxes and registers; on
// the emulated one, with a fault, that it notices.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

// What is left out or wrong. All but kNone is for the emulated GPU: a real one may hang.
enum class Fault : int32_t {
  kNone,
  kNoProxyFence,      // Q is written by threads and read by wgmma
  kFenceBeforeWrite,  // the same, too early
  kNoBarrierFence,    // the mbarrier is not shown to TMA
  kNoMapFence,
  kMoreBytes,  // expected than come
  kFewerBytes,
  kNoMbarrierWait,  // TMA's bytes are read at once
  kNextPhase,       // waits for a phase that never comes
  kTwoArrivals,
  kNoSwizzle,     // of what threads write
  kOtherStride,   // of K's descriptor
  kOtherLeading,  // of V's
  kNoWait,        // accumulators are read at once
  kNoWgmmaFence,
  kEarlyWrite,  // A's registers change before the wait
  kAccumulatorWrite,
  kNoCommit,
  kHalfWarpgroup,  // two warps do not call
  kLonelyBarrier,  // a named barrier that one warp does not reach
};

// q [64, D], k, v [rows, D], D = 128, bf16; rows first_row on of k and v, 128 of them, zeros behind
// the last.
struct TwoProducts {
  std::vector<float> scores;  // [64, 128], q k^T
  std::vector<float> output;  // [64, D], scores v; scores as bf16
};
TwoProducts two_products(CudaQueue& queue, const std::vector<bf16>& q, const std::vector<bf16>& k,
                         const std::vector<bf16>& v, int32_t first_row, Fault fault = Fault::kNone);

}  // namespace annulus::kernels
