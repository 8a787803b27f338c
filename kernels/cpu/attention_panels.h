// SPDX-License-Identifier: Apache-2.0
// Products of the tiled kernel, for a panel of rows at a time: scores of a tile of 64 keys, and
// what they add to o. (bf16 on CPUs with AMX: attention_amx.h.) VectorPanels<Dot>:
//   kRows, kAtOnce                    rows of a panel; panels of a group
//   score(q, words, k, scores)        scores[kRows, 64] = q[kRows, words] K
//   output(o, columns, correction, scores, v)
//                                     o[kRows, columns] = o * correction + P V, P in scores
// Included by attention_impl.cc only.
#pragma once

#include "kernels/cpu/attention_rows.h"

namespace annulus::kernels::ANNULUS_ISA {

// c[R, 16 NV] = c * correction + P V for columns [column, column + 16 NV).
template <class Dot, int R, int NV, class B>
ANNULUS_INLINE void accumulate(float* c, int64_t c_stride, const float* correction, const float* p,
                               const B& b) {
  // A tile's sum begins at zero: rounding errors grow with 64 + tiles, not with the keys.
  Vec acc[R][NV];
  ANNULUS_UNROLL
  for (int r = 0; r < R; ++r) {
    ANNULUS_UNROLL
    for (int n = 0; n < NV; ++n) acc[r][n] = zero();
  }
  multiply<Dot>(reinterpret_cast<const typename Dot::Element*>(p), kTile * Dot::kPerWord, b,
                kTile / Dot::kPerWord, acc);
  ANNULUS_UNROLL
  for (int r = 0; r < R; ++r) {
    const Vec factor = set1(correction[r]);
    ANNULUS_UNROLL
    for (int n = 0; n < NV; ++n) {
      float* at = c + r * c_stride + 16 * n;
      store(at, fma(load(at), factor, acc[r][n]));
    }
  }
}

template <class Dot>
struct VectorPanels {
  static constexpr int kRows = 6, kAtOnce = 4;
  using Element = typename Dot::Element;

  ANNULUS_INLINE void score(const Element* q, int32_t words, const Element* k, float* scores) {
    for (int c = 0; c < kTile; c += 16 * kColumns) {
      Vec acc[kRows][kColumns];
      ANNULUS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        ANNULUS_UNROLL
        for (int n = 0; n < kColumns; ++n) acc[r][n] = zero();
      }
      multiply<Dot>(q, words * Dot::kPerWord,
                    PackedB<Dot>{k + c * Dot::kPerWord, kTile * Dot::kPerWord}, words, acc);
      ANNULUS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        ANNULUS_UNROLL
        for (int n = 0; n < kColumns; ++n) store(scores + r * kTile + c + 16 * n, acc[r][n]);
      }
    }
  }
  ANNULUS_INLINE void output(float* o, int32_t columns, const float* correction,
                             const float* scores, const Element* v) {
    int32_t c = 0;
    const auto b = [&](int32_t column) __attribute__((always_inline)) {
      return PackedB<Dot>{v + column * Dot::kPerWord, int64_t{columns} * Dot::kPerWord};
    };
    for (; c + 16 * kColumns <= columns; c += 16 * kColumns)
      accumulate<Dot, kRows, kColumns>(o + c, columns, correction, scores, b(c));
    if constexpr (kColumns > 1) {
      for (; c < columns; c += 16)
        accumulate<Dot, kRows, 1>(o + c, columns, correction, scores, b(c));
    }
  }
};

}  // namespace annulus::kernels::ANNULUS_ISA
