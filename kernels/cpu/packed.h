// SPDX-License-Identifier: Apache-2.0
// The layout of a PackedMatrix on CPUs, shared by weight.cc (which writes it) and the matmul
// kernels (which read it). The same for every ISA. One panel holds 32 outputs; panels follow each
// other; the missing outputs of the last one are zero. Inside a panel, by k:
//   f32    [k][32]
//   bf16   [k / 2][32][2], an odd k is filled up with zero
//   q8_0   per 32 k: half d[32]; int8 [16][32][2]
//   q4_0   per 32 k: half d[32]; dwords [4][32]: nibble 2j + p (j = 0..3 counts from bit 4j, parity
//          p adds 16) of dword [g][o] is weight k = 8g + 2j + p of output o
//   q4_1   per 32 k: half d[32]; half m[32]; nibbles as q4_0
#pragma once

#include <cstdint>

#include "kernels/weight.h"

namespace annulus::kernels {

inline constexpr int64_t kBlockK = 32;
inline constexpr int64_t kScaleBytes = 64;  // 32 halves
inline constexpr int64_t kReadPastEnd = 4;  // bytes behind the last panel that kernels may read

// Bytes of one panel over k inputs; k is a multiple of 32 for the block formats.
constexpr int64_t panel_bytes(WeightFormat format, int64_t k) {
  switch (format) {
    case WeightFormat::kF32: return k * 128;
    case WeightFormat::kQ8_0: return k / kBlockK * (kScaleBytes + 1024);
    case WeightFormat::kQ4_0: return k / kBlockK * (kScaleBytes + 512);
    case WeightFormat::kQ4_1: return k / kBlockK * (2 * kScaleBytes + 512);
    default: return (k + 1) / 2 * 128;  // bf16
  }
}

}  // namespace annulus::kernels
