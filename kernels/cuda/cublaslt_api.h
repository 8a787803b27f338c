// SPDX-License-Identifier: Apache-2.0
// cuBLASLt as a table of functions that is filled at run time (kernels/core/shared_library.h). The
// declarations repeat what cublasLt.h and cublas_api.h fix; a test compares them with the real
// headers where there are some. Results are cublasStatus_t, 0 is success.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace annulus::kernels {

using CublasHandle = struct CublasLtContext*;
using CublasLayout = struct CublasLtLayoutOpaque*;
using CublasDesc = struct CublasLtDescOpaque*;
using CublasPreference = struct CublasLtPreferenceOpaque*;

struct CublasAlgo {  // cublasLtMatmulAlgo_t
  uint64_t data[8];
};
struct CublasHeuristic {  // cublasLtMatmulHeuristicResult_t
  CublasAlgo algo;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

inline constexpr int kCublasF32 = 0, kCublasBF16 = 14, kCublasF8E4M3 = 28;  // cudaDataType_t
inline constexpr int kCublasCompute32F = 68;                                // cublasComputeType_t
inline constexpr int32_t kCublasTranspose = 1;                              // cublasOperation_t
inline constexpr int kCublasDescTransA = 3;          // cublasLtMatmulDescAttributes_t
inline constexpr int kCublasDescScale[] = {17, 18};  // pointers: of A, of B
inline constexpr int kCublasDescFastSums = 25;
inline constexpr int kCublasDescScaleMode[] = {31, 32};
inline constexpr int32_t kCublasScaleARow = 3;                 // OUTER_VEC_32F
inline constexpr int kCublasPreferWorkspace = 1;               // ...MatmulPreferenceAttributes_t
inline constexpr int kCublasPreferAlignment[] = {5, 6, 7, 8};  // of A, B, C, D, bytes

struct CublasLtApi {
  int (*create)(CublasHandle* handle);
  int (*destroy)(CublasHandle handle);
  int (*desc_create)(CublasDesc* desc, int compute, int scale_type);
  int (*desc_destroy)(CublasDesc desc);
  int (*desc_set)(CublasDesc desc, int attribute, const void* value, size_t bytes);
  int (*layout_create)(CublasLayout* layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layout_destroy)(CublasLayout layout);
  int (*preference_create)(CublasPreference* preference);
  int (*preference_destroy)(CublasPreference preference);
  int (*preference_set)(CublasPreference preference, int attribute, const void* value,
                        size_t bytes);
  int (*heuristic)(CublasHandle handle, CublasDesc desc, CublasLayout a, CublasLayout b,
                   CublasLayout c, CublasLayout d, CublasPreference preference, int wanted,
                   CublasHeuristic* results, int* found);
  int (*matmul)(CublasHandle handle, CublasDesc desc, const void* alpha, const void* a,
                CublasLayout a_layout, const void* b, CublasLayout b_layout, const void* beta,
                const void* c, CublasLayout c_layout, void* d, CublasLayout d_layout,
                const CublasAlgo* algo, void* workspace, size_t workspace_bytes, cudaStream_t on);
  size_t (*version)() = nullptr;  // 130100: 13.1.0
};

// FailedPrecondition where such a version is older than what the engine is built for.
absl::Status check_cublaslt_version(size_t version);

// The library of this machine: ANNULUS_CUBLASLT (a path), then libcublasLt.so.13 as the linker
// finds it, then where NVIDIA's packages put it. FailedPrecondition says what to install
// where there is none or it is too old.
absl::StatusOr<const CublasLtApi*> load_cublaslt();

}  // namespace annulus::kernels
