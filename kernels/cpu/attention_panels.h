// SPDX-License-Identifier: Apache-2.0
// Products of the tiled kernel, for a panel of rows at a time: scores of a tile of 64 keys, and
// what they add to o. In vectors for any Dot; bf16 in AMX tiles where the CPU has them, whose words
// of q and P are rows of A, and those of K and V, as packed, tiles of B. PanelsOf<Dot>:
//   kRows, kAtOnce                    rows of a panel; panels of a group
//   Scope                             lives around all products of a block
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

  struct Scope {};
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

template <class Dot>
struct PanelsOf : VectorPanels<Dot> {};

#if defined(ANNULUS_HAS_AMX)

inline constexpr TileConfig kWholeTiles = tile_config(kAmxRows);

template <>
struct PanelsOf<PairDot> {
  static constexpr int kRows = kAmxRows, kAtOnce = 4;
  static constexpr int64_t kRowBytes = kTile * 4;  // of scores

  struct Scope {
    __attribute__((always_inline)) Scope() { _tile_loadconfig(&kWholeTiles); }
    __attribute__((always_inline)) ~Scope() { _tile_release(); }  // also where a poll throws
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
  };

  ANNULUS_INLINE void score(const bf16* q, int32_t words, const bf16* k, float* scores) {
    tile_fence();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int32_t w = 0; w < words; w += kAmxInputs / 2) {
      const bf16* b = k + int64_t{w} * kTile * 2;
      _tile_loadd(4, q + w * 2, words * 4);
      _tile_loadd(5, b, kRowBytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, b + 32, kRowBytes);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, b + 64, kRowBytes);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, b + 96, kRowBytes);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, scores, kRowBytes);
    _tile_stored(1, scores + 16, kRowBytes);
    _tile_stored(2, scores + 32, kRowBytes);
    _tile_stored(3, scores + 48, kRowBytes);
    tile_fence();
  }

  // Two vectors of columns at a time: sums in tiles 0 and 1, P in 4 and 5, V in 6 and 7. A tile's
  // sum begins at zero: rounding errors grow with 64 + tiles, not with the keys.
  ANNULUS_INLINE void output(float* o, int32_t columns, const float* correction,
                             const float* scores, const bf16* v) {
    alignas(64) float sums[2][kRows * 16];
    tile_fence();
    _tile_loadd(4, scores, kRowBytes);
    _tile_loadd(5, scores + 16, kRowBytes);  // words of keys 32..63
    for (int32_t c = 0; c < columns; c += 32) {
      const bool both = c + 16 < columns;
      const bf16* b = v + int64_t{c} * 2;
      const int64_t below = int64_t{columns} * 16 * 2;  // 16 words on
      _tile_zero(0);
      _tile_loadd(6, b, columns * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + below, columns * 4);
      _tile_dpbf16ps(0, 5, 7);
      _tile_stored(0, sums[0], 64);
      if (both) {
        _tile_zero(1);
        _tile_loadd(6, b + 32, columns * 4);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, b + 32 + below, columns * 4);
        _tile_dpbf16ps(1, 5, 7);
        _tile_stored(1, sums[1], 64);
      }
      tile_fence();
      ANNULUS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Vec factor = set1(correction[r]);
        float* at = o + int64_t{r} * columns + c;
        store(at, fma(load(at), factor, load(sums[0] + 16 * r)));
        if (both) store(at + 16, fma(load(at + 16), factor, load(sums[1] + 16 * r)));
      }
    }
  }
};

#endif

}  // namespace annulus::kernels::ANNULUS_ISA
