// SPDX-License-Identifier: Apache-2.0
#include "parallel/nccl_api.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace annulus::parallel {
namespace {

constexpr int kOldest = 21800;
constexpr const char* kInstall =
    "install NCCL 2.18 or newer (NVIDIA's package libnccl2, or nvidia-nccl-cu13 from PyPI) or name "
    "the library in ANNULUS_NCCL";

std::vector<std::string> places() {
  if (const char* named = std::getenv("ANNULUS_NCCL"); named != nullptr && *named != '\0') {
    return {named};
  }
  std::vector<std::string> out = {"libnccl.so.2"};
  for (const char* pattern : {"/usr/local/lib/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2",
                              "/usr/lib/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2",
                              "/opt/*/lib/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2",
                              "/usr/local/cuda*/lib64/libnccl.so.2"}) {
    glob_t found = {};
    if (glob(pattern, 0, nullptr, &found) == 0) {
      for (size_t i = 0; i < found.gl_pathc; ++i) out.emplace_back(found.gl_pathv[i]);
    }
    globfree(&found);
  }
  return out;
}

template <class Function>
bool find(void* library, const char* name, Function*& out) {
  out = reinterpret_cast<Function*>(dlsym(library, name));
  return out != nullptr;
}

absl::StatusOr<NcclApi> load() {
  const std::vector<std::string> tried = places();
  void* library = nullptr;
  std::string from, why;
  for (const std::string& place : tried) {
    library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    from = place;
    if (library != nullptr) break;
    if (const char* text = dlerror(); why.empty() && text != nullptr) why = text;
  }
  if (library == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "NCCL was not found in ", absl::StrJoin(tried, ", "), " (", why, "); ", kInstall));
  }
  NcclApi api = {};
  const bool whole = find(library, "ncclGetVersion", api.get_version) &&
                     find(library, "ncclGetUniqueId", api.get_unique_id) &&
                     find(library, "ncclCommInitRankConfig", api.comm_init_rank_config) &&
                     find(library, "ncclCommGetAsyncError", api.comm_get_async_error) &&
                     find(library, "ncclCommAbort", api.comm_abort) &&
                     find(library, "ncclGroupStart", api.group_start) &&
                     find(library, "ncclGroupEnd", api.group_end) &&
                     find(library, "ncclSend", api.send) && find(library, "ncclRecv", api.recv) &&
                     find(library, "ncclAllReduce", api.all_reduce) &&
                     find(library, "ncclGetErrorString", api.get_error_string) &&
                     find(library, "ncclGetLastError", api.get_last_error);
  int version = 0;
  if (!whole || api.get_version(&version) != kNcclSuccess || version < kOldest) {
    return absl::FailedPreconditionError(absl::StrCat(
        from, whole ? absl::StrCat(" is NCCL version ", version) : " is no NCCL", "; ", kInstall));
  }
  return api;
}

}  // namespace

absl::StatusOr<const NcclApi*> load_nccl() {
  static const absl::StatusOr<NcclApi> api = load();
  if (!api.ok()) return api.status();
  return &*api;
}

}  // namespace annulus::parallel
