// SPDX-License-Identifier: Apache-2.0
// What `annulus doctor` measures on the ranks, each rank for itself: the rates of its device while
// all of them work at once, as they will, and its hop to the next rank of its ring (CP) and of its
// TP group, pair by pair, so that a slow link is not blamed on its neighbours. Unlike measure.h,
// which prices steps by the slowest rank, nothing is taken over ranks. Needs no model. Collective
// over all ranks; some five seconds, more where a hop of 64 KiB takes long. Errors: DeviceError.
// Defined in examine_inl.h.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/communicator.h"

namespace annulus::parallel {

enum class Figure : uint8_t {
  kGemm,         // GFLOP/s of the linear layers' kernel, many rows
  kRead,         // GB/s of weights read by one row, as decode does
  kCopy,         // GB/s copied within memory: as many are read and written
  kCpBandwidth,  // GB/s to the next rank of the ring, one way
  kCpLatency,    // us, half a round trip of 8 bytes
  kTpBandwidth,  // the same within the TP group
  kTpLatency,
};
inline constexpr size_t kFigures = static_cast<size_t>(Figure::kTpLatency) + 1;
// "gemm_gflops", "read_gbytes", ...: names of figures with their units, as they travel.
const char* name(Figure figure);

// Values of the rounds, by figure; none where the rank has no such link.
using Examination = std::array<std::vector<double>, kFigures>;

// told(done, of): after each part, on the calling thread.
template <class Queue>
Examination examine(Queue& queue, Groups<Queue> groups,
                    const std::function<void(int done, int of)>& told);

}  // namespace annulus::parallel
