// SPDX-License-Identifier: Apache-2.0
// The real cuBLASLt for the tests on a GPU; and our declarations against its headers, where there
// are some: they compile or they do not.
#include "tests/kernels/cuda/gemm_api.h"

namespace annulus::testing {

absl::StatusOr<const kernels::CublasLtApi*> gemm_api() {
  return kernels::load_cublaslt();
}
double f8_unit() {
  return 0x1p-13;  // fast accumulation keeps 14 bits (kernels/cuda/gemm.h)
}

}  // namespace annulus::testing

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

namespace annulus::kernels {

static_assert(sizeof(CublasAlgo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(CublasHeuristic) == sizeof(cublasLtMatmulHeuristicResult_t) &&
              offsetof(CublasHeuristic, workspace_bytes) ==
                  offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
              offsetof(CublasHeuristic, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(kCublasF8E4M3 == CUDA_R_8F_E4M3 &&
              kCublasDescScale[0] == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER &&
              kCublasDescScale[1] == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER &&
              kCublasDescFastSums == CUBLASLT_MATMUL_DESC_FAST_ACCUM &&
              kCublasDescScaleMode[0] == CUBLASLT_MATMUL_DESC_A_SCALE_MODE &&
              kCublasDescScaleMode[1] == CUBLASLT_MATMUL_DESC_B_SCALE_MODE &&
              kCublasScaleARow == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
static_assert(kCublasF32 == CUDA_R_32F && kCublasBF16 == CUDA_R_16BF &&
              kCublasCompute32F == CUBLAS_COMPUTE_32F && kCublasTranspose == CUBLAS_OP_T &&
              kCublasDescTransA == CUBLASLT_MATMUL_DESC_TRANSA &&
              kCublasPreferWorkspace == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
              kCublasPreferAlignment[0] == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
              kCublasPreferAlignment[1] == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES &&
              kCublasPreferAlignment[2] == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES &&
              kCublasPreferAlignment[3] == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);

}  // namespace annulus::kernels
#endif
