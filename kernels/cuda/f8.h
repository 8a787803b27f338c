// SPDX-License-Identifier: Apache-2.0
// Matrices of F8 (E4M3) with a scale a row: the weights of fbgemm_fp8 checkpoints, and the inputs
// that they are multiplied by. What such a matrix means is scales[r] * codes[r, c].
#pragma once

#include <cstdint>

#include "kernels/core/tensor.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

struct F8Rows {
  const uint8_t* codes = nullptr;  // [rows, cols] on the device, rows one after the other
  const float* scales = nullptr;   // [rows] on the device
  int64_t rows = 0, cols = 0;
};

// x, f32 or bf16, as F8 in scratch of the queue: a row is scaled so that its largest size, or bound
// where that is less, becomes the largest F8; what is larger is cut off there. (FBGEMM's row-wise
// quantisation with scale_ub.) cols: a multiple of 4.
F8Rows to_f8_rows(CudaQueue& queue, ConstTensor x, float bound);

}  // namespace annulus::kernels
