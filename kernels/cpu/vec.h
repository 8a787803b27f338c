// SPDX-License-Identifier: Apache-2.0
// Vec: 16 floats, in one AVX-512 register, two AVX2 registers or four plain SSE (or NEON) ones, and
// the operations that CPU kernels need. Included by _impl.cc files only (isa.h says why):
// everything is always-inline and lives in the namespace of the ISA that the file is compiled for.
// Partial loads give 0 in missing lanes and touch no memory behind the end; unaligned pointers are
// fine. exp: relative error <= 2e-7; below x = -86.5 (result under 2.8e-38) it is 0, -inf included;
// above 88.72 it is inf; NaN stays NaN. bf16 stores round to nearest even. Reductions have a fixed
// order.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

#if defined(__AVX512F__)
#include "kernels/cpu/vec_avx512.h"
#elif defined(__AVX2__)
#include "kernels/cpu/vec_avx2.h"
#else
#include "kernels/cpu/vec_portable.h"
#endif

namespace annulus::kernels::ANNULUS_ISA {

inline constexpr int kLanes = 16;

ANNULUS_INLINE Vec zero() {
  return set1(0.0f);
}
ANNULUS_INLINE Vec silu(Vec x) {
  return div(x, add(set1(1.0f), exp(sub(zero(), x))));
}
// One float to bf16, as to_bf16 of dtype.h, which an _impl.cc must not call.
ANNULUS_INLINE bf16 round_bf16(float x) {
  uint32_t u = __builtin_bit_cast(uint32_t, x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
ANNULUS_INLINE float widen(bf16 x) {
  return __builtin_bit_cast(float, uint32_t{x.bits} << 16);
}

}  // namespace annulus::kernels::ANNULUS_ISA
