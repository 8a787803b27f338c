// SPDX-License-Identifier: Apache-2.0
// Gemm: matrix products by cuBLASLt on one queue: tensor cores for bf16, plain fp32 (no TF32) for
// f32, sums in fp32. An algorithm is asked for once a shape and kept; the workspace is fixed, so
// that a product allocates nothing (CUDA graphs). Which algorithm runs depends on the number of
// rows: a row's bits may differ between batches, within the class of the precision. Owned by a
// CudaQueue and used from its thread. Errors: DeviceError.
#pragma once

#include <compare>
#include <cstdint>
#include <map>

#include "kernels/core/tensor.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/memory.h"

namespace annulus::kernels {

class Gemm {
 public:
  explicit Gemm(const CublasLtApi& api);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // out[M, N] = x[M, K] w[N, K]^T, out f32, x and w of one type; rows may be a stride apart.
  // False, and nothing done, where cuBLASLt has no algorithm for it.
  bool multiply(cudaStream_t stream, Tensor out, ConstTensor x, ConstTensor w);

 private:
  struct Shape {
    DType type;
    int64_t m, n, k, x_stride, w_stride, out_stride;
    uint32_t x_alignment, w_alignment, out_alignment;
    auto operator<=>(const Shape&) const = default;  // NOLINT(modernize-use-nullptr): <=> 0
  };
  struct Plan {
    CublasDesc desc = nullptr;
    CublasLayout w = nullptr, x = nullptr, out = nullptr;
    bool possible = false;
    CublasAlgo algo = {};
  };
  Plan make(const Shape& shape) const;
  void drop_plans();

  const CublasLtApi& api_;
  CublasHandle handle_ = nullptr;
  CudaMemory workspace_;
  std::map<Shape, Plan> plans_;
};

}  // namespace annulus::kernels
