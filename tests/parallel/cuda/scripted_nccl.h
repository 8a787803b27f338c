// SPDX-License-Identifier: Apache-2.0
// NCCL for ranks that are threads with an emulated GPU each: the functions of NcclApi, with NCCL's
// meaning and without its freedom. Calls return "in progress" first; a group of transfers ends when
// its sends are taken and its receives have come, as a rendezvous (what would deadlock does); sizes
// that do not match stop the test. Sums in symmetric memory read and write that of every rank, as
// kernels there do, must lie at one place on all ranks, and the memory must be given back after the
// abort, when the GPU is idle. Scripts make it fail: an asynchronous error, a peer that never
// sends, an abort that hangs, a registration that fails or never comes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>

#include "parallel/nccl_api.h"

namespace annulus::testing {

struct NcclScript {
  std::atomic<int> polls{3};  // a communicator says "in progress" so often
  std::atomic<bool> async_error{false};
  std::atomic<bool> abort_hangs{false};
  std::atomic<int> version{22809};
  std::atomic<unsigned> without_window{0};  // bits of ranks: success at once, but no window
  std::atomic<unsigned> fails_window{0};    // bits of ranks: an error when all have come
  std::atomic<bool> no_memory{false};
  std::atomic<int64_t> live{0};         // communicators, for leaks
  std::atomic<int64_t> live_memory{0};  // pieces of symmetric memory
};
NcclScript& nccl_script();

// Sums by their bytes, each rank's for itself, since the last call.
struct NcclSums {
  std::map<size_t, int64_t> plain, symmetric;
};
NcclSums take_nccl_sums();

const parallel::NcclApi& scripted_nccl();

}  // namespace annulus::testing
