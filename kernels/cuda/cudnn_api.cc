// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cudnn_api.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/shared_library.h"

namespace annulus::kernels {
namespace {

constexpr size_t kOldest = 91900;  // whose engines the tests have asked
constexpr const char* kRemedy =
    "install cuDNN 9.19 for CUDA 13 (NVIDIA's package libcudnn9-cuda-13, or nvidia-cudnn-cu13 and "
    "nvidia-cuda-nvrtc from PyPI: deploy/install --cudnn) or name the library in ANNULUS_CUDNN";

absl::StatusOr<CudnnApi> load() {
  const absl::StatusOr<void*> library =
      open_library({"ANNULUS_CUDNN", "libcudnn.so.9", "nvidia/cudnn/lib", kRemedy});
  if (!library.ok()) return library.status();
  CudnnApi api = {};
  void* const from = *library;
  const bool whole = find_symbol(from, "cudnnGetVersion", api.version) &&
                     find_symbol(from, "cudnnGetLastErrorString", api.last_error) &&
                     find_symbol(from, "cudnnCreate", api.create) &&
                     find_symbol(from, "cudnnDestroy", api.destroy) &&
                     find_symbol(from, "cudnnSetStream", api.set_stream) &&
                     find_symbol(from, "cudnnBackendCreateDescriptor", api.descriptor_create) &&
                     find_symbol(from, "cudnnBackendDestroyDescriptor", api.descriptor_destroy) &&
                     find_symbol(from, "cudnnBackendFinalize", api.finalize) &&
                     find_symbol(from, "cudnnBackendSetAttribute", api.set) &&
                     find_symbol(from, "cudnnBackendGetAttribute", api.get) &&
                     find_symbol(from, "cudnnBackendExecute", api.execute);
  if (!whole) {
    return absl::FailedPreconditionError(
        absl::StrCat("the libcudnn.so.9 found is none; ", kRemedy));
  }
  if (const size_t version = api.version(); version < kOldest) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuDNN ", version, " is older than ", kOldest, "; ", kRemedy));
  }
  return api;
}

}  // namespace

absl::StatusOr<const CudnnApi*> load_cudnn() {
  static const absl::StatusOr<CudnnApi> api = load();
  if (!api.ok()) return api.status();
  return &*api;
}

}  // namespace annulus::kernels
