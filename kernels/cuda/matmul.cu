// SPDX-License-Identifier: Apache-2.0
// Computes: out[M, N] = x[M, K] w[N, K]^T by cuBLASLt where the queue has it (gemm.h), else here
//   without tensor cores: what they are compared with.
// Tensors: x f32 or bf16, w f32, bf16 or F8 with scales, by rows; out f32; all on the device.
// Mapping: a block a tile of outputs; each of its 256 threads owns 4 x 4 of them.
// Tiles: 64 x 64 outputs, k through shared memory in steps of 16.
// Numerics: fp32 products and sums (no TF32) over ascending k whatever M is, so that a row's bits
//   do not depend on the batch; with bf16 weights x is rounded to bf16 first, with F8 weights to F8
//   with a scale a row (f8.h); unless whoever wrote x did (CudaMatrix::input).
// Limits: none on shapes; far from the machine's peak.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/f8.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/queue.h"
#include "kernels/ops.h"

namespace annulus::kernels {
namespace {

constexpr int kTile = 64, kStep = 16, kEach = 4, kSide = kTile / kEach;
static_assert(kSide * kSide == device::kBlock);

__device__ float value_of(const uint8_t* code) {
  return f8_e4m3_to_float(*code);
}
template <class T>
__device__ float value_of(const T* p) {
  return device::load(p);
}
// What a tensor core of W's type reads of x.
template <class W, class X>
__device__ float as_input(const X* x) {
  const float value = value_of(x);
  return sizeof(W) == sizeof(bf16) ? to_float(to_bf16(value)) : value;
}

template <class X, class W>
__global__ void __launch_bounds__(device::kBlock)
    matmul_tile(View<const X> x, View<const W> w, View<float> out, const float* x_scales,
                const float* w_scales) {
  __shared__ float xs[kStep][kTile + 1], ws[kStep][kTile + 1];
  const int64_t row0 = int64_t{blockIdx.y} * kTile, col0 = int64_t{blockIdx.x} * kTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int i0 = thread / kSide * kEach, j0 = thread % kSide * kEach;
  float sums[kEach][kEach] = {};
  for (int64_t k0 = 0; k0 < x.cols; k0 += kStep) {
    // k is the fastest index of both: neighbouring threads load neighbouring k.
    for (int e = thread; e < kTile * kStep; e += device::kBlock) {
      const int k = e % kStep, i = e / kStep;
      const bool inside = k0 + k < x.cols;
      xs[k][i] = inside && row0 + i < x.rows ? as_input<W>(x.at(row0 + i, k0 + k)) : 0;
      ws[k][i] = inside && col0 + i < w.rows ? value_of(w.at(col0 + i, k0 + k)) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] += xs[k][i0 + i] * ws[k][j0 + j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t r = row0 + i0 + i, c = col0 + j0 + j;
      if (r >= out.rows || c >= out.cols) continue;
      if constexpr (sizeof(W) == sizeof(uint8_t)) sums[i][j] *= x_scales[r] * w_scales[c];
      *out.at(r, c) = sums[i][j];
    }
  }
}

template <class X, class W>
void multiply_here(CudaQueue& queue, View<float> out, View<const X> x, View<const W> w,
                   const float* x_scales = nullptr, const float* w_scales = nullptr) {
  const dim3 grid = {blocks_for(out.cols, kTile), blocks_for(out.rows, kTile)};
  launch(queue, grid, {device::kBlock}, matmul_tile<X, W>, x, w, out, x_scales, w_scales);
}

void multiply_f8(CudaQueue& queue, Tensor out, const ConstCudaInput& x, const CudaMatrix& w) {
  const CudaQueue::Mark mark(queue);
  const F8Rows inputs = x.is_f8() ? x.f8 : to_f8_rows(queue, x.tensor, w.input_bound());
  const F8Rows weights = {reinterpret_cast<const uint8_t*>(w.data()), w.row_scales(), w.n(), w.k()};
  if (Gemm* const gemm = queue.gemm();
      gemm != nullptr && gemm->multiply(queue, out, inputs, weights))
    return;
  const auto view_of = [](const F8Rows& rows) {
    return View<const uint8_t>{rows.codes, rows.rows, rows.cols, rows.cols};
  };
  multiply_here(queue, view<float>(out), view_of(inputs), view_of(weights), inputs.scales,
                weights.scales);
}

}  // namespace

template <>
void matmul<CudaQueue>(CudaQueue& queue, Tensor out, ConstCudaInput in, const CudaMatrix& w) {
  ANNULUS_CHECK(
      out.dtype == DType::kF32 && in.cols() == w.k() && out.cols == w.n() && out.rows == in.rows(),
      out.rows, " x ", out.cols, " = ", in.rows(), " x ", in.cols(), ", weights ", w.n(), " x ",
      w.k());
  if (out.rows == 0) return;
  if (w.format() == WeightFormat::kF8E4M3) return multiply_f8(queue, out, in, w);
  ANNULUS_CHECK(!in.is_f8(), "F8 rows for another matrix");
  const ConstTensor& x = in.tensor;
  const DType type = w.format() == WeightFormat::kF32 ? DType::kF32 : DType::kBF16;
  const ConstTensor weights = {w.data(), type, w.n(), w.k(), w.k()};
  if (Gemm* const gemm = queue.gemm(); gemm != nullptr) {
    const CudaQueue::Mark mark(queue);
    ConstTensor input = x;
    if (x.dtype != type) {
      const Tensor rounded = {queue.scratch<std::byte>(x.rows * x.cols * size_bytes(type)), type,
                              x.rows, x.cols, x.cols};
      convert(queue, rounded, x);
      input = rounded;
    }
    if (gemm->multiply(queue, out, input, weights)) return;
  }
  with_type(x.dtype, [&]<class X>(X) {
    with_type(type, [&]<class W>(W) {
      multiply_here(queue, view<float>(out), view<const X>(x), view<const W>(weights));
    });
  });
}

}  // namespace annulus::kernels
