// SPDX-License-Identifier: Apache-2.0
// Vec without any instruction set beyond the baseline: four compiler vectors of 4 floats (SSE2 on
// x86-64). Multiply-add rounds twice here. Included by vec.h only.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

namespace annulus::kernels::ANNULUS_ISA {

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

struct Vec {
  F4 v[4];
};
struct Mask {  // lanes all ones or zero
  I4 m[4];
};

alignas(64) static const int32_t kOnesThenZeros[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                       -1, -1, -1, -1, -1, -1, -1, -1};

template <class T>
ANNULUS_INLINE T load_block(const void* p) {
  T x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
ANNULUS_INLINE Mask first_n(int n) {  // lanes below n; n in [0, 16]
  return load_block<Mask>(kOnesThenZeros + 16 - n);
}
ANNULUS_INLINE Mask both(Mask x, Mask y) {
  return {{x.m[0] & y.m[0], x.m[1] & y.m[1], x.m[2] & y.m[2], x.m[3] & y.m[3]}};
}
ANNULUS_INLINE bool any(Mask x) {
  I4 e = (x.m[0] | x.m[1]) | (x.m[2] | x.m[3]);
  return (e[0] | e[1] | e[2] | e[3]) != 0;
}
ANNULUS_INLINE bool all(Mask x) {
  I4 e = (x.m[0] & x.m[1]) & (x.m[2] & x.m[3]);
  return (e[0] & e[1] & e[2] & e[3]) != 0;
}
// p[i] <= bound
ANNULUS_INLINE Mask less_equal(const int32_t* p, int32_t bound) {
  Mask x = load_block<Mask>(p);
  I4 q = {bound, bound, bound, bound};
  return {{x.m[0] <= q, x.m[1] <= q, x.m[2] <= q, x.m[3] <= q}};
}
ANNULUS_INLINE Mask less_equal_n(const int32_t* p, int n, int32_t bound) {
  int32_t padded[16] = {};
  __builtin_memcpy(padded, p, static_cast<unsigned>(n) * sizeof(int32_t));
  return both(less_equal(padded, bound), first_n(n));
}
ANNULUS_INLINE F4 pick(I4 m, F4 yes, F4 no) {
  return reinterpret_cast<F4>((m & reinterpret_cast<I4>(yes)) | (~m & reinterpret_cast<I4>(no)));
}
ANNULUS_INLINE Vec select(Mask m, Vec yes, Vec no) {
  return {{pick(m.m[0], yes.v[0], no.v[0]), pick(m.m[1], yes.v[1], no.v[1]),
           pick(m.m[2], yes.v[2], no.v[2]), pick(m.m[3], yes.v[3], no.v[3])}};
}

ANNULUS_INLINE Vec set1(float x) {
  F4 f = {x, x, x, x};
  return {{f, f, f, f}};
}
ANNULUS_INLINE Vec load(const float* p) {
  return {
      {load_block<F4>(p), load_block<F4>(p + 4), load_block<F4>(p + 8), load_block<F4>(p + 12)}};
}
ANNULUS_INLINE Vec load_n(const float* p, int n) {
  float padded[16] = {};
  __builtin_memcpy(padded, p, static_cast<unsigned>(n) * sizeof(float));
  return load(padded);
}
ANNULUS_INLINE void store(float* p, Vec x) {
  __builtin_memcpy(p, &x, sizeof x);
}
ANNULUS_INLINE void store_n(float* p, Vec x, int n) {
  __builtin_memcpy(p, &x, static_cast<unsigned>(n) * sizeof(float));
}
ANNULUS_INLINE Vec load(const bf16* p) {
  float f[16];
  for (int i = 0; i < 16; ++i)
    f[i] = __builtin_bit_cast(float, static_cast<uint32_t>(p[i].bits) << 16);
  return load(f);
}
ANNULUS_INLINE Vec load_n(const bf16* p, int n) {
  bf16 words[16] = {};
  __builtin_memcpy(words, p, static_cast<unsigned>(n) * sizeof(bf16));
  return load(words);
}
ANNULUS_INLINE void store_n(bf16* p, Vec x, int n) {
  float f[16];
  store(f, x);
  for (int i = 0; i < n; ++i) {
    uint32_t u = __builtin_bit_cast(uint32_t, f[i]);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    p[i].bits = static_cast<uint16_t>((nan ? u | 0x400000u : u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
}
ANNULUS_INLINE void store(bf16* p, Vec x) {
  store_n(p, x, 16);
}
ANNULUS_INLINE Vec load_i8(const int8_t* p) {
  float f[16];
  for (int i = 0; i < 16; ++i) f[i] = static_cast<float>(p[i]);
  return load(f);
}
// IEEE half: exponent and mantissa moved into a float and rescaled; subnormals are right, infinity
// and NaN come out as large numbers (no weight or scale holds them).
ANNULUS_INLINE Vec load_half(const uint16_t* p) {
  float f[16];
  for (int i = 0; i < 16; ++i) {
    uint32_t magnitude = static_cast<uint32_t>(p[i] & 0x7fffu) << 13;
    float x = __builtin_bit_cast(float, magnitude) * 0x1p112f;
    f[i] = (p[i] & 0x8000u) != 0 ? -x : x;
  }
  return load(f);
}

ANNULUS_INLINE Vec add(Vec x, Vec y) {
  return {{x.v[0] + y.v[0], x.v[1] + y.v[1], x.v[2] + y.v[2], x.v[3] + y.v[3]}};
}
ANNULUS_INLINE Vec sub(Vec x, Vec y) {
  return {{x.v[0] - y.v[0], x.v[1] - y.v[1], x.v[2] - y.v[2], x.v[3] - y.v[3]}};
}
ANNULUS_INLINE Vec mul(Vec x, Vec y) {
  return {{x.v[0] * y.v[0], x.v[1] * y.v[1], x.v[2] * y.v[2], x.v[3] * y.v[3]}};
}
ANNULUS_INLINE Vec div(Vec x, Vec y) {
  return {{x.v[0] / y.v[0], x.v[1] / y.v[1], x.v[2] / y.v[2], x.v[3] / y.v[3]}};
}
ANNULUS_INLINE Vec fma(Vec x, Vec y, Vec z) {  // x y + z
  return add(mul(x, y), z);
}
ANNULUS_INLINE Vec max(Vec x, Vec y) {  // y where either is NaN
  return {{pick(x.v[0] > y.v[0], x.v[0], y.v[0]), pick(x.v[1] > y.v[1], x.v[1], y.v[1]),
           pick(x.v[2] > y.v[2], x.v[2], y.v[2]), pick(x.v[3] > y.v[3], x.v[3], y.v[3])}};
}
ANNULUS_INLINE Vec min(Vec x, Vec y) {
  return {{pick(x.v[0] < y.v[0], x.v[0], y.v[0]), pick(x.v[1] < y.v[1], x.v[1], y.v[1]),
           pick(x.v[2] < y.v[2], x.v[2], y.v[2]), pick(x.v[3] < y.v[3], x.v[3], y.v[3])}};
}
ANNULUS_INLINE float reduce_add(Vec x) {
  F4 s = (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
ANNULUS_INLINE float reduce_max(Vec x) {
  float f[16];
  store(f, x);
  float m = f[0];
  for (int i = 1; i < 16; ++i) m = f[i] > m ? f[i] : m;
  return m;
}

// As vec_avx2.h; rounds to an integer by adding and subtracting 1.5 * 2^23.
ANNULUS_INLINE F4 exp4(F4 x) {
  I4 keep = ~(x < -86.5f);
  F4 c = pick(keep, x, F4{-86.5f, -86.5f, -86.5f, -86.5f});
  c = pick(c > 89.0f, F4{89.0f, 89.0f, 89.0f, 89.0f}, c);
  F4 shifted = c * 1.44269504f + 12582912.0f;
  I4 whole = reinterpret_cast<I4>(shifted) - 0x4b400000;
  F4 n = shifted - 12582912.0f;
  F4 r = c - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
  F4 p = r * (0x1.6d10fcp-10f) + 0x1.120b62p-7f;
  p = p * r + 0x1.55551ap-5f;
  p = p * r + 0x1.5554dep-3f;
  p = p * r + 0x1.p-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  F4 half_scale = reinterpret_cast<F4>((whole + 126) << 23);
  return reinterpret_cast<F4>(keep & reinterpret_cast<I4>((p + p) * half_scale));
}
ANNULUS_INLINE Vec exp(Vec x) {
  return {{exp4(x.v[0]), exp4(x.v[1]), exp4(x.v[2]), exp4(x.v[3])}};
}

// 16 integers of 32 bits, for unpacking weights.
struct IVec {
  I4 v[4];
};
ANNULUS_INLINE IVec load_dwords(const void* p) {
  return load_block<IVec>(p);
}
ANNULUS_INLINE IVec load_words(const void* p) {  // 16 words, widened with their sign
  int16_t words[16];
  __builtin_memcpy(words, p, sizeof words);
  int32_t wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = words[i];
  return load_block<IVec>(wide);
}
template <int kBits>
ANNULUS_INLINE IVec shift_left(IVec x) {
  return {{x.v[0] << kBits, x.v[1] << kBits, x.v[2] << kBits, x.v[3] << kBits}};
}
ANNULUS_INLINE IVec bit_and(IVec x, uint32_t mask) {
  int32_t m = static_cast<int32_t>(mask);
  return {{x.v[0] & m, x.v[1] & m, x.v[2] & m, x.v[3] & m}};
}
ANNULUS_INLINE F4 to_float(I4 x) {
  return __builtin_convertvector(x, F4);
}
ANNULUS_INLINE Vec to_float(IVec x) {
  return {{to_float(x.v[0]), to_float(x.v[1]), to_float(x.v[2]), to_float(x.v[3])}};
}
ANNULUS_INLINE Vec bits_as_float(IVec x) {
  return load_block<Vec>(&x);
}
ANNULUS_INLINE F4 swap_neighbours(F4 x) {
  return F4{x[1], x[0], x[3], x[2]};
}
ANNULUS_INLINE Vec swap_neighbours(Vec x) {  // lanes 1, 0, 3, 2, ...
  return {{swap_neighbours(x.v[0]), swap_neighbours(x.v[1]), swap_neighbours(x.v[2]),
           swap_neighbours(x.v[3])}};
}

}  // namespace annulus::kernels::ANNULUS_ISA
