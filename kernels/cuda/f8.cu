// SPDX-License-Identifier: Apache-2.0
// Computes: codes[r, c] = F8(x[r, c] / scales[r]), scales[r] = min(max |x[r]|, bound) / 448.
// Tensors: x f32 or bf16; codes bytes, scales f32; all on the device.
// Mapping: a block a row; a thread four neighbouring columns at a time.
// Tiles: none; memory-bound: x is read twice, the second time from a cache.
// Numerics: fp32 division, F8 to nearest even. A row of zeros has the scale 1; NaN stays NaN.
// Limits: cols % 4 == 0; 2^31 rows.
#include "kernels/cuda/f8.h"

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/f8.cuh"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

template <class X>
__global__ void __launch_bounds__(device::kBlock) quantise_row(View<const X> x, F8Room out) {
  const int64_t r = blockIdx.x;
  write_f8_row(out, r, [&](int64_t c) { return device::load(x.at(r, c)); });
}

}  // namespace

F8Rows to_f8_rows(CudaQueue& queue, ConstTensor x, float bound) {
  ANNULUS_CHECK(x.cols % kF8Each == 0, x.cols, " columns");
  const F8Room out = {queue.scratch<uint8_t>(x.rows * x.cols), queue.scratch<float>(x.rows), x.rows,
                      x.cols, bound};
  with_type(x.dtype, [&]<class X>(X) {
    launch(queue, {blocks_for(x.rows, 1)}, {device::kBlock}, quantise_row<X>, view<const X>(x),
           out);
  });
  return out;
}

}  // namespace annulus::kernels
