// SPDX-License-Identifier: Apache-2.0
// Vec for AVX-512 F/BW/VL/DQ; with AVX512_BF16 also products of bf16 pairs. Included by vec.h only.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

#if defined(__AVX512F__)

namespace annulus::kernels::ANNULUS_ISA {

struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};

ANNULUS_INLINE Mask first_n(int n) {  // lanes below n; n in [0, 16]
  return {static_cast<__mmask16>((1u << n) - 1u)};
}
ANNULUS_INLINE Mask both(Mask a, Mask b) {
  return {static_cast<__mmask16>(a.m & b.m)};
}
ANNULUS_INLINE bool any(Mask m) {
  return m.m != 0;
}
ANNULUS_INLINE bool all(Mask m) {
  return m.m == 0xffff;
}
// p[i] <= bound
ANNULUS_INLINE Mask less_equal(const int32_t* p, int32_t bound) {
  return {_mm512_cmple_epi32_mask(_mm512_loadu_si512(p), _mm512_set1_epi32(bound))};
}
ANNULUS_INLINE Mask less_equal_n(const int32_t* p, int n, int32_t bound) {
  __mmask16 m = first_n(n).m;
  return {
      _mm512_mask_cmple_epi32_mask(m, _mm512_maskz_loadu_epi32(m, p), _mm512_set1_epi32(bound))};
}
ANNULUS_INLINE Vec select(Mask m, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(m.m, no.v, yes.v)};
}

ANNULUS_INLINE Vec set1(float x) {
  return {_mm512_set1_ps(x)};
}
ANNULUS_INLINE Vec load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
ANNULUS_INLINE Vec load_n(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_n(n).m, p)};
}
ANNULUS_INLINE void store(float* p, Vec x) {
  _mm512_storeu_ps(p, x.v);
}
ANNULUS_INLINE void store_n(float* p, Vec x, int n) {
  _mm512_mask_storeu_ps(p, first_n(n).m, x.v);
}
ANNULUS_INLINE Vec widen_words(__m256i x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
ANNULUS_INLINE Vec load(const bf16* p) {
  return widen_words(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
ANNULUS_INLINE Vec load_n(const bf16* p, int n) {
  return widen_words(_mm256_maskz_loadu_epi16(first_n(n).m, p));
}
ANNULUS_INLINE __m256i round_words(Vec x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
#else
  __m512i u = _mm512_castps_si512(x.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), u,
                           _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#endif
}
ANNULUS_INLINE void store(bf16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_words(x));
}
ANNULUS_INLINE void store_n(bf16* p, Vec x, int n) {
  _mm256_mask_storeu_epi16(p, first_n(n).m, round_words(x));
}
ANNULUS_INLINE Vec load_i8(const int8_t* p) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
ANNULUS_INLINE Vec load_half(const uint16_t* p) {  // IEEE half
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

ANNULUS_INLINE Vec add(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
ANNULUS_INLINE Vec sub(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
ANNULUS_INLINE Vec mul(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
ANNULUS_INLINE Vec div(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
ANNULUS_INLINE Vec fma(Vec a, Vec b, Vec c) {  // a b + c
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
ANNULUS_INLINE Vec max(Vec a, Vec b) {  // b where either is NaN
  return {_mm512_max_ps(a.v, b.v)};
}
ANNULUS_INLINE Vec min(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
ANNULUS_INLINE float reduce_add(Vec x) {
  __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
ANNULUS_INLINE float reduce_max(Vec x) {
  __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

// 2^n e^r with |r| <= ln(2) / 2; ln(2) in two parts, and e^r by a polynomial of degree 6
// that interpolates at Chebyshev nodes (relative error 8e-9, under that of the roundings).
ANNULUS_INLINE Vec exp(Vec x) {
  __mmask16 keep = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-86.5f), _CMP_NLT_UQ);
  __m512 c = _mm512_min_ps(_mm512_set1_ps(89.0f), x.v);
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(c, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), c);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
  __m512 p = _mm512_set1_ps(0x1.6d10fcp-10f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.120b62p-7f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.55551ap-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5554dep-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.p-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return {_mm512_maskz_scalef_ps(keep, p, n)};
}

// 16 integers of 32 bits, for unpacking weights.
struct IVec {
  __m512i v;
};
ANNULUS_INLINE IVec load_dwords(const void* p) {
  return {_mm512_loadu_si512(p)};
}
ANNULUS_INLINE IVec load_words(const void* p) {  // 16 words, widened with their sign
  return {_mm512_cvtepi16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
template <int kBits>
ANNULUS_INLINE IVec shift_left(IVec x) {
  return {_mm512_slli_epi32(x.v, kBits)};
}
ANNULUS_INLINE IVec bit_and(IVec x, uint32_t mask) {
  return {_mm512_and_si512(x.v, _mm512_set1_epi32(static_cast<int32_t>(mask)))};
}
ANNULUS_INLINE Vec to_float(IVec x) {
  return {_mm512_cvtepi32_ps(x.v)};
}
ANNULUS_INLINE Vec bits_as_float(IVec x) {
  return {_mm512_castsi512_ps(x.v)};
}
ANNULUS_INLINE Vec swap_neighbours(Vec x) {  // lanes 1, 0, 3, 2, ...
  return {_mm512_permute_ps(x.v, 0xb1)};
}

#if defined(__AVX512BF16__)
#define ANNULUS_HAS_BF16_DOT 1
struct Pairs {  // 16 lanes of two consecutive bf16
  __m512bh v;
};
ANNULUS_INLINE Pairs load_pairs(const bf16* p) {  // 32 values
  return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))};
}
ANNULUS_INLINE Pairs broadcast_pair(const bf16* p) {  // p[0], p[1] in every lane
  int32_t both_bits;
  __builtin_memcpy(&both_bits, p, sizeof both_bits);
  return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(both_bits))};
}
// acc + a[0] b[0] + a[1] b[1] per lane; subnormal operands and results count as 0.
ANNULUS_INLINE Vec dot_pairs(Vec acc, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(acc.v, a.v, b.v)};
}
#endif

}  // namespace annulus::kernels::ANNULUS_ISA

#endif
