// SPDX-License-Identifier: Apache-2.0
// NCCL as a table of functions that is filled at run time, so that a program starts on a machine
// without it, building needs no header of it, and tests bring a scripted one. The declarations
// repeat what nccl.h fixes since 2.18 (a test compares them with the real header where there is
// one); results are ncclResult_t.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace annulus::parallel {

struct NcclId {
  char bytes[128];
};
using NcclComm = struct NcclCommOpaque*;
using NcclWindow = struct NcclWindowOpaque*;

inline constexpr int kNcclSuccess = 0, kNcclInProgress = 7;
inline constexpr int kNcclUint8 = 1, kNcclFloat32 = 7;  // ncclDataType_t
inline constexpr int kNcclSum = 0;                      // ncclRedOp_t
inline constexpr int kNcclSymmetricWindow = 1;          // NCCL_WIN_COLL_SYMMETRIC

// ncclConfig_t as of 2.18: newer libraries take it by its size and version.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = INT_MIN;  // INT_MIN, nullptr: NCCL's own choice
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

struct NcclApi {
  int (*get_version)(int* version);
  int (*get_unique_id)(NcclId* id);
  int (*comm_init_rank_config)(NcclComm* comm, int ranks, NcclId id, int rank, NcclConfig* config);
  int (*comm_get_async_error)(NcclComm comm, int* error);
  int (*comm_abort)(NcclComm comm);
  int (*group_start)();
  int (*group_end)();
  int (*send)(const void* data, size_t count, int type, int peer, NcclComm comm, cudaStream_t on);
  int (*recv)(void* data, size_t count, int type, int peer, NcclComm comm, cudaStream_t on);
  int (*all_reduce)(const void* from, void* to, size_t count, int type, int op, NcclComm comm,
                    cudaStream_t on);
  const char* (*get_error_string)(int result);
  const char* (*get_last_error)(NcclComm comm);
  // Symmetric memory, null in libraries before 2.27. Registering is collective; it fills *window
  // when it is no longer in progress, with null where the ranks cannot reach each other's memory.
  int (*mem_alloc)(void** data, size_t bytes);
  int (*mem_free)(void* data);
  int (*comm_window_register)(NcclComm comm, void* data, size_t bytes, NcclWindow* window,
                              int flags);
};

// The first library whose kernels on symmetric memory are known to end when they are aborted (those
// of 2.28 wait for a lost peer for ever).
inline constexpr int kNcclSymmetricOldest = 23000;

// ncclGetVersion(). FailedPrecondition where that is older than 2.22.
absl::Status check_nccl_version(int version);

// The library of this machine, loaded once and kept: ANNULUS_NCCL (a path), then libnccl.so.2 as
// the linker finds it, then where NVIDIA's Python packages put it. FailedPrecondition where there
// is none or it is older than 2.22, saying where was looked and what installs it.
absl::StatusOr<const NcclApi*> load_nccl();

}  // namespace annulus::parallel
