// SPDX-License-Identifier: Apache-2.0
// Matrices of F8 (E4M3) with a scale a row: the weights of fbgemm_fp8 checkpoints, and the inputs
// that they are multiplied by. What such a matrix means is scales[r] * codes[r, c]. And what a
// matrix's inputs are at all: CudaInput, which CudaMatrix::input() makes, norm and SwiGLU write
// (f8.cuh) and matmul reads.
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

// Room for such rows. bound: as to_f8_rows() takes it.
struct F8Room {
  uint8_t* codes = nullptr;
  float* scales = nullptr;
  int64_t rows = 0, cols = 0;
  float bound = 0;
  operator F8Rows() const { return {codes, scales, rows, cols}; }  // NOLINT: may be read
};

// Rows that a CudaMatrix multiplies: f32 or bf16, or F8 where there are codes.
struct CudaInput {
  CudaInput(Tensor rows) : tensor(rows) {}     // NOLINT: any rows are an input
  CudaInput(const F8Room& room) : f8(room) {}  // NOLINT
  bool is_f8() const { return f8.codes != nullptr; }
  Tensor tensor;
  F8Room f8;
};
struct ConstCudaInput {
  ConstCudaInput(ConstTensor rows) : tensor(rows) {}                           // NOLINT
  ConstCudaInput(Tensor rows) : tensor(rows) {}                                // NOLINT
  ConstCudaInput(const F8Rows& rows) : f8(rows) {}                             // NOLINT
  ConstCudaInput(const CudaInput& rows) : tensor(rows.tensor), f8(rows.f8) {}  // NOLINT
  bool is_f8() const { return f8.codes != nullptr; }
  int64_t rows() const { return is_f8() ? f8.rows : tensor.rows; }
  int64_t cols() const { return is_f8() ? f8.cols : tensor.cols; }
  ConstTensor tensor;
  F8Rows f8;
};

// x, f32 or bf16, as F8 in scratch of the queue: a row is scaled so that its largest size, or bound
// where that is less, becomes the largest F8; what is larger is cut off there. (FBGEMM's row-wise
// quantisation with scale_ub.) cols: a multiple of 4.
F8Rows to_f8_rows(CudaQueue& queue, ConstTensor x, float bound);

}  // namespace annulus::kernels
