// SPDX-License-Identifier: Apache-2.0
#include "parallel/nccl_api.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "kernels/core/shared_library.h"

namespace annulus::parallel {
namespace {

using kernels::find_symbol;

constexpr int kOldest = 22200;  // aborts several communicators as a group
constexpr const char* kRemedy =
    "install NCCL 2.22 or newer (NVIDIA's package libnccl2, or nvidia-nccl-cu13 from PyPI) or name "
    "the library in ANNULUS_NCCL";

absl::StatusOr<NcclApi> load() {
  // Registering buffers of a capture is a meeting of a host's ranks inside NCCL, which an abort
  // does not end; here one may capture where another replays (CudaQueue::repeat).
  setenv("NCCL_GRAPH_REGISTER", "0", 0);
  const absl::StatusOr<void*> library =
      kernels::open_library({"ANNULUS_NCCL", "libnccl.so.2", "nvidia/nccl/lib", kRemedy});
  if (!library.ok()) return library.status();
  NcclApi api = {};
  int version = 0;
  if (find_symbol(*library, "ncclGetVersion", api.get_version) &&
      api.get_version(&version) == kNcclSuccess) {
    if (absl::Status status = check_nccl_version(version); !status.ok()) return status;
  }
  const bool whole = version > 0 && find_symbol(*library, "ncclGetUniqueId", api.get_unique_id) &&
                     find_symbol(*library, "ncclCommInitRankConfig", api.comm_init_rank_config) &&
                     find_symbol(*library, "ncclCommGetAsyncError", api.comm_get_async_error) &&
                     find_symbol(*library, "ncclCommAbort", api.comm_abort) &&
                     find_symbol(*library, "ncclGroupStart", api.group_start) &&
                     find_symbol(*library, "ncclGroupEnd", api.group_end) &&
                     find_symbol(*library, "ncclSend", api.send) &&
                     find_symbol(*library, "ncclRecv", api.recv) &&
                     find_symbol(*library, "ncclAllReduce", api.all_reduce) &&
                     find_symbol(*library, "ncclGetErrorString", api.get_error_string) &&
                     find_symbol(*library, "ncclGetLastError", api.get_last_error);
  find_symbol(*library, "ncclMemAlloc", api.mem_alloc);
  find_symbol(*library, "ncclMemFree", api.mem_free);
  find_symbol(*library, "ncclCommWindowRegister", api.comm_window_register);
  if (!whole) {
    return absl::FailedPreconditionError(absl::StrCat("the libnccl.so.2 found is none; ", kRemedy));
  }
  return api;
}

}  // namespace

absl::Status check_nccl_version(int version) {
  return kernels::check_version("NCCL", version, kOldest, kRemedy);
}

absl::StatusOr<const NcclApi*> load_nccl() {
  static const absl::StatusOr<NcclApi> api = load();
  if (!api.ok()) return api.status();
  return &*api;
}

}  // namespace annulus::parallel
