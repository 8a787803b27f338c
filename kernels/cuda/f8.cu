// SPDX-License-Identifier: Apache-2.0
// Computes: codes[r, c] = F8(x[r, c] / scales[r]), scales[r] = min(max |x[r]|, bound) / 448.
// Tensors: x f32 or bf16; codes bytes, scales f32; all on the device.
// Mapping: a block a row; a thread four neighbouring columns at a time.
// Tiles: none; memory-bound: x is read twice, the second time from a cache.
// Numerics: fp32 division, F8 to nearest even. A row of zeros has the scale 1; NaN stays NaN.
// Limits: cols % 4 == 0; 2^31 rows.
#include "kernels/cuda/f8.h"

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

constexpr int kEach = 4;

template <class X>
__global__ void __launch_bounds__(device::kBlock)
    quantise_row(View<const X> x, uint32_t* codes, float* scales, float bound) {
  const int64_t r = blockIdx.x, words = x.cols / kEach;
  float largest = 0;
  for (int64_t c = threadIdx.x; c < x.cols; c += device::kBlock)
    largest = fmaxf(largest, fabsf(device::load(x.at(r, c))));
  largest = fminf(device::block_max(largest), bound);
  const float scale = largest > 0 ? largest / kF8Largest : 1;
  if (threadIdx.x == 0) scales[r] = scale;
  for (int64_t w = threadIdx.x; w < words; w += device::kBlock) {
    uint32_t word = 0;
    for (int i = 0; i < kEach; ++i) {
      const float value = device::load(x.at(r, w * kEach + i)) / scale;
      word |= uint32_t{float_to_f8_e4m3(value)} << 8 * i;
    }
    codes[r * words + w] = word;
  }
}

}  // namespace

F8Rows to_f8_rows(CudaQueue& queue, ConstTensor x, float bound) {
  ANNULUS_CHECK(x.cols % kEach == 0, x.cols, " columns");
  auto* const codes = queue.scratch<uint32_t>(x.rows * x.cols / kEach);
  auto* const scales = queue.scratch<float>(x.rows);
  if (x.rows > 0) {
    with_type(x.dtype, [&]<class X>(X) {
      launch(queue.stream(), {blocks_for(x.rows, 1)}, {device::kBlock}, quantise_row<X>,
             view<const X>(x), codes, scales, bound);
    });
  }
  return {reinterpret_cast<const uint8_t*>(codes), scales, x.rows, x.cols};
}

}  // namespace annulus::kernels
