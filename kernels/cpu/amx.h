// SPDX-License-Identifier: Apache-2.0
// What kernels of the ISA "amx" share: tiles of 16 rows of 64 bytes, and products of bf16 tiles.
// tdpbf16ps (Intel SDM, volume 2): c[m][n] += e + o, where e and o are the chains of fma over the
// even and the odd inputs of 16 pairs, each from zero; subnormals count as 0. A tile of A has a row
// an output row, 32 inputs in order; one of B a row a pair of inputs, its outputs side by side.
// Tile numbers are part of an instruction, so that they are literals. Included by _impl.cc only.
#pragma once

#include "kernels/cpu/vec.h"

// clang 14 spells them without underscores.
#if (defined(__AMX_BF16__) && defined(__AMX_TILE__)) || \
    (defined(__AMXBF16__) && defined(__AMXTILE__))
#define ANNULUS_HAS_AMX 1

namespace annulus::kernels::ANNULUS_ISA {

inline constexpr int kAmxRows = 16, kAmxInputs = 32, kAmxOutputs = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0..4 have `rows` rows (sums and A), 5..7 sixteen (B); with 16 rows all are alike.
constexpr TileConfig tile_config(int rows) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = 64;
    config.rows[t] = static_cast<uint8_t>(t < 5 ? rows : kAmxRows);
  }
  return config;
}

// The intrinsics of GCC 12 do not tell the compiler that they touch memory: between writing it and
// loading a tile, and between storing a tile and reading it.
ANNULUS_INLINE void tile_fence() {
  __asm__ volatile("" ::: "memory");
}

}  // namespace annulus::kernels::ANNULUS_ISA

#endif
