// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cublaslt_api.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/shared_library.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kOldest = 130000;  // the major version that the engine is tested with
constexpr const char* kRemedy =
    "install cuBLAS 13 (NVIDIA's package libcublas-13-0, or nvidia-cublas from PyPI) or name the "
    "library in ANNULUS_CUBLASLT";

absl::StatusOr<CublasLtApi> load() {
  const absl::StatusOr<void*> library =
      open_library({"ANNULUS_CUBLASLT", "libcublasLt.so.13", "nvidia/cu13/lib", kRemedy});
  if (!library.ok()) return library.status();
  CublasLtApi api = {};
  void* const from = *library;
  if (find_symbol(from, "cublasLtGetVersion", api.version)) {
    if (absl::Status status = check_cublaslt_version(api.version()); !status.ok()) return status;
  }
  const bool whole =
      api.version != nullptr && find_symbol(from, "cublasLtCreate", api.create) &&
      find_symbol(from, "cublasLtDestroy", api.destroy) &&
      find_symbol(from, "cublasLtMatmulDescCreate", api.desc_create) &&
      find_symbol(from, "cublasLtMatmulDescDestroy", api.desc_destroy) &&
      find_symbol(from, "cublasLtMatmulDescSetAttribute", api.desc_set) &&
      find_symbol(from, "cublasLtMatrixLayoutCreate", api.layout_create) &&
      find_symbol(from, "cublasLtMatrixLayoutDestroy", api.layout_destroy) &&
      find_symbol(from, "cublasLtMatmulPreferenceCreate", api.preference_create) &&
      find_symbol(from, "cublasLtMatmulPreferenceDestroy", api.preference_destroy) &&
      find_symbol(from, "cublasLtMatmulPreferenceSetAttribute", api.preference_set) &&
      find_symbol(from, "cublasLtMatmulAlgoGetHeuristic", api.heuristic) &&
      find_symbol(from, "cublasLtMatmul", api.matmul);
  if (!whole) {
    return absl::FailedPreconditionError(
        absl::StrCat("the libcublasLt.so.13 found is none; ", kRemedy));
  }
  return api;
}

}  // namespace

absl::Status check_cublaslt_version(size_t version) {
  return check_version("cuBLASLt", static_cast<int64_t>(version), kOldest, kRemedy);
}

absl::StatusOr<const CublasLtApi*> load_cublaslt() {
  static const absl::StatusOr<CublasLtApi> api = load();
  if (!api.ok()) return api.status();
  return &*api;
}

}  // namespace annulus::kernels
