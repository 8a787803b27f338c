// SPDX-License-Identifier: Apache-2.0
// Building blocks of attention_impl.cc, per ISA: how operands are packed and multiplied. Operands
// are made of 32-bit words: one float (WideDot) or, where the CPU multiplies bf16, a pair of bf16
// that lie next to each other along the summed dimension (PairDot). A product C[R, 16 NV] += A B
// broadcasts the words of A's rows and reads B as [words][16 NV]; partial tiles are zero-padded.
// Included by attention_impl.cc only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/vec.h"

namespace annulus::kernels::ANNULUS_ISA {

inline constexpr int kTile = 64;  // keys of a tile
#if defined(__AVX512F__)
inline constexpr int kColumns = 4;  // vectors of C per row: 6 x 4 accumulators of 32 registers
#else
inline constexpr int kColumns = 1;  // 6 x 1 accumulators, two registers each
#endif

#define ANNULUS_UNROLL _Pragma("GCC unroll 16")

struct WideDot {
  using Element = float;
  using Operand = Vec;
  static constexpr int kPerWord = 1;
  ANNULUS_INLINE Operand load_words(const float* p) { return load(p); }
  ANNULUS_INLINE Operand broadcast(const float* p) { return set1(*p); }
  ANNULUS_INLINE Vec mul_add(Vec acc, Operand a, Operand b) { return fma(a, b, acc); }
};

#if defined(ANNULUS_HAS_BF16_DOT)
struct PairDot {
  using Element = bf16;
  using Operand = Pairs;
  static constexpr int kPerWord = 2;
  ANNULUS_INLINE Operand load_words(const bf16* p) { return load_pairs(p); }
  ANNULUS_INLINE Operand broadcast(const bf16* p) { return broadcast_pair(p); }
  ANNULUS_INLINE Vec mul_add(Vec acc, Operand a, Operand b) { return dot_pairs(acc, a, b); }
};

// Words of two consecutive keys: columns [0, 16) of (a, b) to low, [16, 32) to high.
ANNULUS_INLINE void interleave(Pairs a, Pairs b, Pairs& low, Pairs& high) {
  alignas(64) static const uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low_index = _mm512_load_si512(kLow);
  const __m512i high_index = _mm512_add_epi16(low_index, _mm512_set1_epi16(16));
  const __m512i x = reinterpret_cast<__m512i>(a.v), y = reinterpret_cast<__m512i>(b.v);
  low.v = reinterpret_cast<__m512bh>(_mm512_permutex2var_epi16(x, low_index, y));
  high.v = reinterpret_cast<__m512bh>(_mm512_permutex2var_epi16(x, high_index, y));
}
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
// out[i * stride + j] = lane i of argument j.
ANNULUS_INLINE void transpose_8(__m256 r0, __m256 r1, __m256 r2, __m256 r3, __m256 r4, __m256 r5,
                                __m256 r6, __m256 r7, float* out, int64_t stride) {
  const auto quad = [](__m256 x, __m256 y, __m256 z, __m256 w, __m256(&to)[4])
      __attribute__((always_inline)) {  // to[i]: lanes i and 4 + i of x, y, z, w
    const __m256 a = _mm256_unpacklo_ps(x, y), b = _mm256_unpackhi_ps(x, y);
    const __m256 c = _mm256_unpacklo_ps(z, w), d = _mm256_unpackhi_ps(z, w);
    to[0] = _mm256_shuffle_ps(a, c, 0x44);
    to[1] = _mm256_shuffle_ps(a, c, 0xee);
    to[2] = _mm256_shuffle_ps(b, d, 0x44);
    to[3] = _mm256_shuffle_ps(b, d, 0xee);
  };
  __m256 low[4], high[4];
  quad(r0, r1, r2, r3, low);
  quad(r4, r5, r6, r7, high);
  ANNULUS_UNROLL
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * stride, _mm256_permute2f128_ps(low[i], high[i], 0x20));
    _mm256_storeu_ps(out + (4 + i) * stride, _mm256_permute2f128_ps(low[i], high[i], 0x31));
  }
}
#endif

// out[i * stride + j] = in[j] lane i.
ANNULUS_INLINE void transpose(const Vec (&in)[16], float* out, int64_t stride) {
#if defined(__AVX512F__)
  __m512 a[16], b[16];
  ANNULUS_UNROLL
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(in[i].v, in[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(in[i].v, in[i + 1].v);
  }
  ANNULUS_UNROLL
  for (int i = 0; i < 16; i += 4) {
    for (int h = 0; h < 2; ++h) {
      const __m512d x = _mm512_castps_pd(a[i + h]), y = _mm512_castps_pd(a[i + h + 2]);
      b[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      b[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  }
  // b[4 g + i]: rows 4 g .. 4 g + 3 of columns i, 4 + i, 8 + i, 12 + i, one per 128 bits.
  ANNULUS_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512 x = _mm512_shuffle_f32x4(b[i], b[4 + i], 0x88);
    const __m512 y = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0x88);
    const __m512 z = _mm512_shuffle_f32x4(b[i], b[4 + i], 0xdd);
    const __m512 w = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0xdd);
    _mm512_storeu_ps(out + i * stride, _mm512_shuffle_f32x4(x, y, 0x88));
    _mm512_storeu_ps(out + (8 + i) * stride, _mm512_shuffle_f32x4(x, y, 0xdd));
    _mm512_storeu_ps(out + (4 + i) * stride, _mm512_shuffle_f32x4(z, w, 0x88));
    _mm512_storeu_ps(out + (12 + i) * stride, _mm512_shuffle_f32x4(z, w, 0xdd));
  }
#elif defined(__AVX2__)
  ANNULUS_UNROLL
  for (int j = 0; j < 16; j += 8) {
    transpose_8(in[j].a, in[j + 1].a, in[j + 2].a, in[j + 3].a, in[j + 4].a, in[j + 5].a,
                in[j + 6].a, in[j + 7].a, out + j, stride);
    transpose_8(in[j].b, in[j + 1].b, in[j + 2].b, in[j + 3].b, in[j + 4].b, in[j + 5].b,
                in[j + 6].b, in[j + 7].b, out + 8 * stride + j, stride);
  }
#else
  alignas(64) float rows[16][16];
  for (int j = 0; j < 16; ++j) store(rows[j], in[j]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) out[i * stride + j] = rows[j][i];
#endif
}

// Sums of the lanes of 8 vectors, in parts that join() adds up; lane j or 8 + j of the whole comes
// from in[j] of its half.
#if defined(__AVX512F__)
struct Sums {
  __m512 parts;  // per 128 bits: half the lanes of in[0..3] (even) or in[4..7] (odd)
};
ANNULUS_INLINE Sums sum_each(const Vec (&in)[8]) {
  __m512 a[4], b[2];
  ANNULUS_UNROLL
  for (int i = 0; i < 4; ++i)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(in[2 * i].v, in[2 * i + 1].v),
                         _mm512_unpackhi_ps(in[2 * i].v, in[2 * i + 1].v));
  ANNULUS_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  return {_mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88),
                        _mm512_shuffle_f32x4(b[0], b[1], 0xdd))};
}
ANNULUS_INLINE Vec join(const Sums& low, const Sums& high) {
  return {_mm512_add_ps(_mm512_shuffle_f32x4(low.parts, high.parts, 0x88),
                        _mm512_shuffle_f32x4(low.parts, high.parts, 0xdd))};
}
#else
struct Sums {
  float each[8];
};
ANNULUS_INLINE Sums sum_each(const Vec (&in)[8]) {
  Sums sums;
  for (int j = 0; j < 8; ++j) sums.each[j] = reduce_add(in[j]);
  return sums;
}
ANNULUS_INLINE Vec join(const Sums& low, const Sums& high) {
  alignas(64) float all[16];
  for (int j = 0; j < 8; ++j) {
    all[j] = low.each[j];
    all[8 + j] = high.each[j];
  }
  return load(all);
}
#endif

ANNULUS_INLINE bool any_above(Vec x, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(
             _mm256_cmp_ps(_mm256_max_ps(x.a, x.b), _mm256_set1_ps(bound), _CMP_GT_OQ)) != 0;
#else
  return reduce_max(x) > bound;
#endif
}

// How rows of a cache with elements E become words of a Dot.
template <class Dot, class E>
struct Rows;

template <class E>
struct Rows<WideDot, E> {
  // 16 words of a row; n of them exist.
  ANNULUS_INLINE Vec words(const E* row, int32_t n) { return n >= 16 ? load(row) : load_n(row, n); }
  ANNULUS_INLINE Vec operand(const E* row) { return load(row); }
  // V of one word (one key): NV vectors of columns.
  template <int NV>
  ANNULUS_INLINE void values(const std::byte* const* rows, int32_t word, int64_t offset_bytes,
                             Vec (&out)[NV]) {
    const E* row = reinterpret_cast<const E*>(rows[word] + offset_bytes);
    ANNULUS_UNROLL
    for (int n = 0; n < NV; ++n) out[n] = load(row + 16 * n);
  }
  // V of one word, cols columns of which d exist, to out [cols].
  ANNULUS_INLINE void pack_values(const std::byte* const* rows, int32_t word, int64_t offset_bytes,
                                  int32_t d, int32_t cols, float* out) {
    const E* row = reinterpret_cast<const E*>(rows[word] + offset_bytes);
    for (int32_t c = 0; c < cols; c += 16) store(out + c, words(row + c, d - c));
  }
};

#if defined(ANNULUS_HAS_BF16_DOT)
template <>
struct Rows<PairDot, bf16> {
  ANNULUS_INLINE Vec words(const bf16* row, int32_t n) {
    return {_mm512_maskz_loadu_ps(first_n(n < 16 ? n : 16).m, row)};
  }
  ANNULUS_INLINE Pairs operand(const bf16* row) { return load_pairs(row); }
  template <int NV>
  ANNULUS_INLINE void values(const std::byte* const* rows, int32_t word, int64_t offset_bytes,
                             Pairs (&out)[NV]) {
    static_assert(NV % 2 == 0);
    const auto* a = reinterpret_cast<const bf16*>(rows[2 * word] + offset_bytes);
    const auto* b = reinterpret_cast<const bf16*>(rows[2 * word + 1] + offset_bytes);
    ANNULUS_UNROLL
    for (int n = 0; n < NV; n += 2)
      interleave(load_pairs(a + 16 * n), load_pairs(b + 16 * n), out[n], out[n + 1]);
  }
  ANNULUS_INLINE Pairs some(const bf16* p, int32_t n) {
    if (n >= 32) return load_pairs(p);
    return {reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16((1u << n) - 1u, p))};
  }
  ANNULUS_INLINE void pack_values(const std::byte* const* rows, int32_t word, int64_t offset_bytes,
                                  int32_t d, int32_t cols, bf16* out) {
    const auto* a = reinterpret_cast<const bf16*>(rows[2 * word] + offset_bytes);
    const auto* b = reinterpret_cast<const bf16*>(rows[2 * word + 1] + offset_bytes);
    for (int32_t c = 0; c < cols; c += 32) {
      Pairs low, high;
      interleave(some(a + c, d - c), some(b + c, d - c), low, high);
      _mm512_storeu_si512(out + 2 * c, reinterpret_cast<__m512i>(low.v));
      if (c + 16 < cols) _mm512_storeu_si512(out + 2 * c + 32, reinterpret_cast<__m512i>(high.v));
    }
  }
};
#endif

// B of a product, packed [words][stride].
template <class Dot>
struct PackedB {
  const typename Dot::Element* p;
  int64_t stride;  // in elements
  template <int NV>
  __attribute__((always_inline)) void load_row(int32_t word,
                                               typename Dot::Operand (&out)[NV]) const {
    ANNULUS_UNROLL
    for (int n = 0; n < NV; ++n)
      out[n] = Dot::load_words(p + word * stride + n * 16 * Dot::kPerWord);
  }
};

// B of a product read from V rows where they lie. fetch: told what is read here for the first time.
template <class Dot, class E, class Fetch>
struct RowsB {
  const std::byte* const* rows;
  int64_t offset_bytes;  // of the first column
  Fetch* fetch;          // or null
  template <int NV>
  __attribute__((always_inline)) void load_row(int32_t word,
                                               typename Dot::Operand (&out)[NV]) const {
    if (fetch != nullptr) fetch->values(NV * 16 * Dot::kPerWord * int64_t{sizeof(E)});
    Rows<Dot, E>::template values<NV>(rows, word, offset_bytes, out);
  }
};

template <class Dot, int R, int NV, class B>
ANNULUS_INLINE void multiply(const typename Dot::Element* a, int64_t a_stride, const B& b,
                             int32_t words, Vec (&acc)[R][NV]) {
  for (int32_t w = 0; w < words; ++w) {
    typename Dot::Operand row[NV];
    b.load_row(w, row);
    ANNULUS_UNROLL
    for (int r = 0; r < R; ++r) {
      const typename Dot::Operand x = Dot::broadcast(a + r * a_stride + w * Dot::kPerWord);
      ANNULUS_UNROLL
      for (int n = 0; n < NV; ++n) acc[r][n] = Dot::mul_add(acc[r][n], x, row[n]);
    }
  }
}

}  // namespace annulus::kernels::ANNULUS_ISA
