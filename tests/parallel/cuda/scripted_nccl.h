// SPDX-License-Identifier: Apache-2.0
// NCCL for ranks that are threads with an emulated GPU each: the functions of NcclApi, with NCCL's
// meaning and without its freedom. Calls return "in progress" first; a group of transfers ends when
// its sends are taken and its receives have come, as a rendezvous (what would deadlock does); sizes
// that do not match stop the test. Scripts make it fail: an asynchronous error, a peer that never
// sends, an abort that hangs.
#pragma once

#include <atomic>
#include <cstdint>

#include "parallel/nccl_api.h"

namespace annulus::testing {

struct NcclScript {
  std::atomic<int> polls{3};  // a communicator says "in progress" so often
  std::atomic<bool> async_error{false};
  std::atomic<bool> abort_hangs{false};
  std::atomic<int> version{22809};
  std::atomic<int64_t> live{0};  // communicators, for leaks
};
NcclScript& nccl_script();

const parallel::NcclApi& scripted_nccl();

}  // namespace annulus::testing
