// SPDX-License-Identifier: Apache-2.0
// Gemm: matrix products by cuBLASLt on one queue: tensor cores for bf16 and F8, plain fp32 (no
// TF32) for f32. Sums in fp32, but F8 with fast accumulation, as other engines that serve F8
// multiply: the tensor cores then keep some 14 bits of a sum (DeepSeek-V3 report, 3.3.2). An
// algorithm is asked for once a shape and kept; the workspace is fixed, so that a product allocates
// nothing (CUDA graphs). The algorithm is the library's first choice, or the fastest of several
// that were timed here: then bits may differ from one start to the next. Which algorithm runs
// depends on the number of rows: a row's bits may differ between batches, within the class of the
// precision. Owned by a CudaQueue and used from its thread. Errors: DeviceError.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "kernels/core/tensor.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/f8.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

class Gemm {
 public:
  explicit Gemm(const CublasLtApi& api);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // out[M, N] = x[M, K] w[N, K]^T, out f32, x and w of one type; rows may be a stride apart.
  // False, and nothing done, where cuBLASLt has no algorithm for it.
  bool multiply(CudaQueue& queue, Tensor out, ConstTensor x, ConstTensor w);
  // The same of F8 with a scale a row of x and of w (OUTER_VEC_32F: Hopper only); N, K % 16 == 0.
  bool multiply(CudaQueue& queue, Tensor out, const F8Rows& x, const F8Rows& w);

  // While it is on, a product of a shape that has not been timed runs by each algorithm that the
  // library offers, and keeps the fastest; it waits for the GPU. Shapes that differ in the rows
  // alone take the one of the nearest that was timed, where the library offers it for them, too.
  void set_tuning(bool on) { tuning_ = on; }

 private:
  struct Shape {
    int type;  // cudaDataType_t of x and w
    int64_t m, n, k, x_stride, w_stride, out_stride;
    uint32_t x_alignment, w_alignment, out_alignment;
    auto operator<=>(const Shape&) const = default;  // NOLINT(modernize-use-nullptr): <=> 0
  };
  struct Plan {
    int64_t number = 0;  // no other has it
    CublasDesc desc = nullptr;
    CublasLayout w = nullptr, x = nullptr, out = nullptr;
    bool possible = false, tuned = false;
    CublasAlgo algo = {};
    std::vector<CublasAlgo> offered;  // the library's first choice first
  };
  Plan& plan_of(const Shape& shape);
  Plan make(const Shape& shape) const;
  struct Operands {
    const void *w, *x;
    float* out;
    const float *w_scales = nullptr, *x_scales = nullptr;
  };
  int enqueue(CudaQueue& queue, const Plan& plan, const Operands& operands) const;
  void tune(CudaQueue& queue, Plan& plan, const Operands& operands) const;
  // False where the library has no algorithm.
  bool multiply(CudaQueue& queue, const Shape& shape, const Operands& operands);
  CublasAlgo choice(const Shape& shape, const Plan& plan) const;
  void drop_plans();
  void destroy(const Plan& plan) const;

  const CublasLtApi& api_;
  CublasHandle handle_ = nullptr;
  CudaMemory workspace_;
  std::map<Shape, Plan> plans_;
  int64_t made_ = 0;                     // plans
  bool tuning_ = false, tuned_ = false;  // now; ever
};

}  // namespace annulus::kernels
