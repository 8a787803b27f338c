// SPDX-License-Identifier: Apache-2.0
// A row becomes F8 with a scale, by a block of kBlock threads: what f8.cu does to rows in memory
// and rows.cu to rows that it computes. Included by .cu files.
#pragma once

#include "kernels/cuda/f8.h"

#include "kernels/cuda/device.cuh"

namespace annulus::kernels {

inline constexpr int kF8Each = 4;  // neighbouring columns that a thread writes at a time

// out row r = value(c) for every column c, of which each is asked for twice. Once a block.
template <class Value>
__device__ void write_f8_row(const F8Room& out, int64_t r, const Value& value) {
  const int64_t words = out.cols / kF8Each;
  float largest = 0;
  for (int64_t c = threadIdx.x; c < out.cols; c += device::kBlock)
    largest = fmaxf(largest, fabsf(value(c)));
  largest = fminf(device::block_max(largest), out.bound);
  const float scale = largest > 0 ? largest / kF8Largest : 1;
  if (threadIdx.x == 0) out.scales[r] = scale;
  auto* const to = reinterpret_cast<uint32_t*>(out.codes) + r * words;
  for (int64_t w = threadIdx.x; w < words; w += device::kBlock) {
    uint32_t word = 0;
    for (int i = 0; i < kF8Each; ++i)
      word |= uint32_t{float_to_f8_e4m3(value(w * kF8Each + i) / scale)} << 8 * i;
    to[w] = word;
  }
}

}  // namespace annulus::kernels
