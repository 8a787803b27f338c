// SPDX-License-Identifier: Apache-2.0
// What matmul.cc needs of each instruction set: pack rows of x, decode a piece of a panel, and
// multiply a tile. Internal to kernels/cpu.
//
// Numerics, per ISA and format, whatever the number of rows: one f32 accumulator per output, k
// ascending, so that a row's result depends on nothing but the row.
//   f32 weights, or no vdpbf16ps: w to f32 (d q, or d q + m), acc = fma(x, w, acc) for each k
//   bf16 weights, vdpbf16ps:      x to bf16, acc += x[k] w[k] + x[k+1] w[k+1] for each pair
//   block weights, vdpbf16ps:     x to bf16; q (exact in bf16) times x summed over a block of 32,
//                                 then acc = fma(d, sum, acc), and for q4_1 fma(m, sum of x, acc)
//   AMX: the same but for the order within a block of 32 inputs (bf16 weights too): even and odd
//                                 ones are summed apart from zero, then together, then to acc
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/isa.h"

namespace annulus::kernels {

// The packed forms (kernels/cpu/packed.h).
enum MatmulKind : uint8_t { kTileF32, kTileBF16, kTileQ8_0, kTileQ4_0, kTileQ4_1, kTileKinds };

inline constexpr int kMaxTileRows = 16;

struct MatmulTile {
  const void* x = nullptr;         // packed rows, from the tile's first k
  const float* x_sums = nullptr;   // [k / 32][rows] sums of 32 x each: kTileQ4_1, bf16_dot
  const std::byte* w = nullptr;    // first panel, from the tile's first k
  int64_t panel_stride_bytes = 0;  // from one panel to the next
  // One panel's weights by decode(), where its kind stays what it is; null: in w only.
  const std::byte* decoded = nullptr;
  int64_t panels = 0;    // outputs [0, 32 * panels), of which n exist
  int64_t k = 0;         // inputs; for block kinds a multiple of 32
  float* out = nullptr;  // [rows, n]
  int64_t out_stride = 0;
  int64_t n = 0;
  bool accumulate = false;  // out += instead of out =
  bool streams = false;     // weights are met once, and come from memory
};

struct MatmulKernels {
  bool bf16_dot;              // x is bf16 (pairs) but for kTileF32
  int tile_rows[kTileKinds];  // rows of the largest tile of a kind, <= kMaxTileRows
  // Packs rows x k of x: f32 [k][rows], or bf16 [k / k_unit][rows][k_unit], the last unit filled up
  // with zeros, with, where sums is not null, sums [k / 32][rows] of the rounded values.
  int k_unit;
  void (*pack_f32)(const float* x, int64_t stride, int rows, int64_t k, float* out);
  void (*pack_bf16)(const float* x, int64_t stride, int rows, int64_t k, uint16_t* out,
                    float* sums);
  // k inputs of one panel in a form that tiles of the kind `decoded` read (kTileF32: as its packed
  // form; the same kind: MatmulTile::decoded), at most 4 bytes a weight: decoding once for many
  // tiles is cheaper than in every tile. Null where tiles of any number decode.
  void (*decode[kTileKinds])(const std::byte* w, int64_t k, void* out);
  MatmulKind decoded[kTileKinds];
  // Around tiles of so many rows, on one thread, but for kTileF32. Null: nothing to do. They cost
  // as much as some of a tile's work: AMX takes full tiles, and the rest at the end, where others
  // take tiles of even sizes.
  void (*begin)(int rows);
  void (*end)(int rows);
  // tile[kind][rows - 1]; null where there is none.
  void (*tile[kTileKinds][kMaxTileRows])(const MatmulTile& tile);
};

ANNULUS_DECLARE_PER_ISA(MatmulKernels, kMatmulKernels)

}  // namespace annulus::kernels
