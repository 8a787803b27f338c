// SPDX-License-Identifier: Apache-2.0
// Vec for AVX2 with FMA and F16C: two registers of 8. Included by vec.h only.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

#if defined(__AVX2__)

namespace annulus::kernels::ANNULUS_ISA {

struct Vec {
  __m256 a, b;
};
struct Mask {  // lanes all ones or zero
  __m256i a, b;
};

alignas(64) static const int32_t kOnesThenZeros[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                       -1, -1, -1, -1, -1, -1, -1, -1};

ANNULUS_INLINE __m256i load_ints(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
ANNULUS_INLINE Mask first_n(int n) {  // lanes below n; n in [0, 16]
  const int32_t* p = kOnesThenZeros + 16 - n;
  return {load_ints(p), load_ints(p + 8)};
}
ANNULUS_INLINE Mask both(Mask x, Mask y) {
  return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
ANNULUS_INLINE bool any(Mask m) {
  __m256i either = _mm256_or_si256(m.a, m.b);
  return _mm256_testz_si256(either, either) == 0;
}
ANNULUS_INLINE bool all(Mask m) {
  return _mm256_movemask_epi8(_mm256_and_si256(m.a, m.b)) == -1;
}
// p[i] <= bound
ANNULUS_INLINE Mask less_equal(const int32_t* p, int32_t bound) {
  __m256i q = _mm256_set1_epi32(bound), ones = _mm256_set1_epi32(-1);
  return {_mm256_xor_si256(_mm256_cmpgt_epi32(load_ints(p), q), ones),
          _mm256_xor_si256(_mm256_cmpgt_epi32(load_ints(p + 8), q), ones)};
}
ANNULUS_INLINE Mask less_equal_n(const int32_t* p, int n, int32_t bound) {
  Mask m = first_n(n);
  __m256i q = _mm256_set1_epi32(bound);
  return {_mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_maskload_epi32(p, m.a), q), m.a),
          _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_maskload_epi32(p + 8, m.b), q), m.b)};
}
ANNULUS_INLINE Vec select(Mask m, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_castsi256_ps(m.a)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_castsi256_ps(m.b))};
}

ANNULUS_INLINE Vec set1(float x) {
  __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
ANNULUS_INLINE Vec load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
ANNULUS_INLINE Vec load_n(const float* p, int n) {
  Mask m = first_n(n);
  return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
ANNULUS_INLINE void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
ANNULUS_INLINE void store_n(float* p, Vec x, int n) {
  Mask m = first_n(n);
  _mm256_maskstore_ps(p, m.a, x.a);
  _mm256_maskstore_ps(p + 8, m.b, x.b);
}
ANNULUS_INLINE __m256 widen_words(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
ANNULUS_INLINE Vec load(const bf16* p) {
  const auto* words = reinterpret_cast<const __m128i*>(p);  // widened as they are loaded
  return {widen_words(_mm_loadu_si128(words)), widen_words(_mm_loadu_si128(words + 1))};
}
ANNULUS_INLINE Vec load_n(const bf16* p, int n) {
  alignas(32) bf16 words[16] = {};
  __builtin_memcpy(words, p, static_cast<unsigned>(n) * sizeof(bf16));
  return load(words);
}
ANNULUS_INLINE __m256i round_words(__m256 x) {  // one word in the low half of every lane
  __m256i u = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(r, quiet, nan), 16);
}
ANNULUS_INLINE void store(bf16* p, Vec x) {
  __m256i words = _mm256_packus_epi32(round_words(x.a), round_words(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
ANNULUS_INLINE void store_n(bf16* p, Vec x, int n) {
  alignas(32) bf16 words[16];
  store(words, x);
  __builtin_memcpy(p, words, static_cast<unsigned>(n) * sizeof(bf16));
}
ANNULUS_INLINE Vec load_i8(const int8_t* p) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
ANNULUS_INLINE Vec load_half(const uint16_t* p) {  // IEEE half
  __m256i h = load_ints(p);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}

ANNULUS_INLINE Vec add(Vec x, Vec y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
ANNULUS_INLINE Vec sub(Vec x, Vec y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
ANNULUS_INLINE Vec mul(Vec x, Vec y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
ANNULUS_INLINE Vec div(Vec x, Vec y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
ANNULUS_INLINE Vec fma(Vec x, Vec y, Vec z) {  // x y + z
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
ANNULUS_INLINE Vec max(Vec x, Vec y) {  // y where either is NaN
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
ANNULUS_INLINE Vec min(Vec x, Vec y) {
  return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
ANNULUS_INLINE float reduce_add(Vec x) {
  __m256 a = _mm256_add_ps(x.a, x.b);
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
ANNULUS_INLINE float reduce_max(Vec x) {
  __m256 a = _mm256_max_ps(x.a, x.b);
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

// As vec_avx512.h; 2^n as 2 * 2^(n-1), so that n = 128 is reached.
ANNULUS_INLINE __m256 exp8(__m256 x) {
  __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(-86.5f), _CMP_NLT_UQ);
  __m256 c = _mm256_min_ps(_mm256_set1_ps(89.0f), _mm256_max_ps(_mm256_set1_ps(-86.5f), x));
  __m256 n = _mm256_round_ps(_mm256_mul_ps(c, _mm256_set1_ps(1.44269504f)),
                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), c);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 p = _mm256_set1_ps(0x1.6d10fcp-10f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.120b62p-7f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.55551ap-5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5554dep-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.p-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126));
  __m256 half_scale = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
  return _mm256_and_ps(keep, _mm256_mul_ps(_mm256_add_ps(p, p), half_scale));
}
ANNULUS_INLINE Vec exp(Vec x) {
  return {exp8(x.a), exp8(x.b)};
}

// 16 integers of 32 bits, for unpacking weights.
struct IVec {
  __m256i a, b;
};
ANNULUS_INLINE IVec load_dwords(const void* p) {
  return {load_ints(p), load_ints(static_cast<const char*>(p) + 32)};
}
ANNULUS_INLINE IVec load_words(const void* p) {  // 16 words, widened with their sign
  __m256i w = load_ints(p);
  return {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(w)),
          _mm256_cvtepi16_epi32(_mm256_extracti128_si256(w, 1))};
}
template <int kBits>
ANNULUS_INLINE IVec shift_left(IVec x) {
  return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
}
ANNULUS_INLINE IVec bit_and(IVec x, uint32_t mask) {
  __m256i m = _mm256_set1_epi32(static_cast<int32_t>(mask));
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
ANNULUS_INLINE Vec to_float(IVec x) {
  return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
ANNULUS_INLINE Vec bits_as_float(IVec x) {
  return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}
ANNULUS_INLINE Vec swap_neighbours(Vec x) {  // lanes 1, 0, 3, 2, ...
  return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}

}  // namespace annulus::kernels::ANNULUS_ISA

#endif
