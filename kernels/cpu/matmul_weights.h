// SPDX-License-Identifier: Apache-2.0
// Readers: how matmul_impl.cc takes weights out of a panel (layouts: kernels/cpu/packed.h). A
// reader walks blocks of kBlock inputs, kBlockBytes each, in steps of kStep inputs. scales(block,
// half) are those of a block and 16 outputs, w = d q + m. raw(block, step, half) loads what a step
// needs of them; then either f32<i>(raw, scales) gives the weights of input i of the step, or
// pairs<i>(raw) those of inputs 2i and 2i + 1 as bf16, still to be scaled. Included by
// matmul_impl.cc and matmul_amx.h.
#pragma once

#include "kernels/cpu/matmul_kernels.h"
#include "kernels/cpu/vec.h"

namespace annulus::kernels::ANNULUS_ISA {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// f(Constant<0>), ..., f(Constant<kCount - 1>)
template <int kCount, int kFrom = 0, class F>
ANNULUS_INLINE void unroll(const F& f) {
  if constexpr (kFrom < kCount) {
    f(Constant<kFrom>{});
    unroll<kCount, kFrom + 1>(f);
  }
}

// Decoding blocks keeps so many instructions in flight that few loads reach memory early, and their
// panels end before the hardware's streams get going: they are asked for this far ahead.
inline constexpr int64_t kAheadOfBlocks = 4096;

// Asks for the weights kAhead bytes from w, the block of each panel at input k. Near its end a
// panel goes on with the one that the next tile reads in its place.
template <class Reader, int kPanels, int64_t kAhead>
ANNULUS_INLINE void prefetch(const MatmulTile& tile, int64_t k, const char* const* w) {
  const bool ends = (tile.k - k) / Reader::kBlock * Reader::kBlockBytes <= kAhead;
  const int64_t ahead = kAhead + (ends ? (kPanels - 1) * tile.panel_stride_bytes : 0);
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 32
    for (int64_t i = 0; i < Reader::kBlockBytes; i += 64) __builtin_prefetch(w[p] + ahead + i);
}

ANNULUS_INLINE const uint16_t* halves(const char* block, int half) {
  return reinterpret_cast<const uint16_t*>(block) + half * 16;
}

struct ReadF32 {
  static constexpr int kBlock = 1, kStep = 1, kBlockBytes = 128;
  using Raw = Vec;
  struct Scales {};
  ANNULUS_INLINE Scales scales(const char*, int) { return {}; }
  ANNULUS_INLINE Raw raw(const char* block, int, int half) {
    return load(reinterpret_cast<const float*>(block) + half * 16);
  }
  template <int i>
  ANNULUS_INLINE Vec f32(const Raw& raw, const Scales&) {
    return raw;
  }
};

struct ReadBF16 {
  static constexpr int kBlock = 2, kStep = 2, kBlockBytes = 128;
  using Raw = IVec;
  struct Scales {};
  ANNULUS_INLINE Scales scales(const char*, int) { return {}; }
  ANNULUS_INLINE Raw raw(const char* block, int, int half) {
    return load_dwords(block + half * 64);
  }
  template <int i>
  ANNULUS_INLINE Vec f32(const Raw& raw, const Scales&) {
    if constexpr (i == 0) return bits_as_float(shift_left<16>(raw));
    return bits_as_float(bit_and(raw, 0xffff0000u));
  }
};

struct ReadQ8_0 {
  static constexpr int kBlock = 32, kStep = 2, kBlockBytes = 64 + 1024;
  using Raw = IVec;
  struct Scales {
    Vec d, d_low, d_high;
  };
  ANNULUS_INLINE Scales scales(const char* block, int half) {
    const Vec d = load_half(halves(block, half));
    return {d, mul(d, set1(0x1p-24f)), mul(d, set1(0x1p-8f))};
  }
  ANNULUS_INLINE Raw raw(const char* block, int step, int half) {
    return load_words(block + 64 + step * 64 + half * 32);
  }
  // Bytes become multiples of q by one operation each, and the scales make up for it.
  template <int i>
  ANNULUS_INLINE Vec f32(const Raw& raw, const Scales& s) {
    if constexpr (i == 0) return mul(to_float(shift_left<24>(raw)), s.d_low);
    return mul(to_float(bit_and(raw, 0xffffff00u)), s.d_high);
  }
};

// A nibble is masked where it stands: the dword is read from the byte on that holds it (packed.h
// allows reading a little past the end), and 16 q of an upper nibble meets d / 16. No shifts, which
// would compete with conversions for the same ports.
template <int kScaleBytes>
struct ReadNibbles {
  static constexpr int kBlock = 32, kStep = 8, kBlockBytes = kScaleBytes + 512;
  using Raw = const char*;
  ANNULUS_INLINE Raw raw(const char* block, int step, int half) {
    return block + kScaleBytes + step * 128 + half * 64;
  }
  struct Scales {
    Vec d, d_16th, m;
  };
  template <int i>
  ANNULUS_INLINE Vec f32(Raw raw, const Scales& s) {
    constexpr int kBit = 4 * (i / 2) + 16 * (i % 2);
    const IVec bytes = load_dwords(raw + kBit / 8);
    if constexpr (kBit % 8 != 0) return fma(to_float(bit_and(bytes, 0xf0u)), s.d_16th, s.m);
    return fma(to_float(bit_and(bytes, 0x0fu)), s.d, s.m);
  }
};

struct ReadQ4_0 : ReadNibbles<64> {
  // Exact, as d (q - 8) is: a half times a 4-bit integer.
  ANNULUS_INLINE Scales scales(const char* block, int half) {
    const Vec d = load_half(halves(block, half));
    return {d, mul(d, set1(0.0625f)), mul(d, set1(-8.0f))};
  }
};

struct ReadQ4_1 : ReadNibbles<128> {
  ANNULUS_INLINE Scales scales(const char* block, int half) {
    const Vec d = load_half(halves(block, half));
    return {d, mul(d, set1(0.0625f)), load_half(halves(block + 64, half))};
  }
};

#if defined(ANNULUS_HAS_BF16_DOT)

// The dot readers add: kScaled (multiply sums of a block by d), kMinima (add m times the sum of x).
struct DotBF16 : ReadBF16 {
  static constexpr bool kScaled = false, kMinima = false;
  template <int i>
  ANNULUS_INLINE Pairs pairs(const Raw& raw) {
    return {reinterpret_cast<__m512bh>(raw.v)};
  }
};

struct DotQ8_0 : ReadQ8_0 {
  static constexpr bool kScaled = true, kMinima = false;
  struct Raw {
    __m128i low, high;  // bytes of outputs 0..7 and 8..15, pairs of inputs
  };
  ANNULUS_INLINE Raw raw(const char* block, int step, int half) {
    const auto* p = reinterpret_cast<const __m128i*>(block + 64 + step * 64 + half * 32);
    return {_mm_loadu_si128(p), _mm_loadu_si128(p + 1)};
  }
  template <int i>
  ANNULUS_INLINE Pairs pairs(const Raw& raw) {
    return {_mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw.high)),
                                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw.low)))};
  }
};

// vpermw looks at 5 bits of each word, the nibble and one bit of the next: the table repeats.
template <int kOffset>
ANNULUS_INLINE __m512i nibble_table() {
  const __m512 steps = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512 values = _mm512_sub_ps(steps, _mm512_set1_ps(kOffset));
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(values, values));
}

template <class Base, int kOffset, bool kHasMinima>
struct DotNibbles : Base {
  static constexpr bool kScaled = true, kMinima = kHasMinima;
  using Raw = IVec;
  ANNULUS_INLINE Raw raw(const char* block, int step, int half) {
    return load_dwords(Base::raw(block, step, half));
  }
  template <int i>
  ANNULUS_INLINE Pairs pairs(const Raw& raw) {
    return {reinterpret_cast<__m512bh>(
        _mm512_permutexvar_epi16(_mm512_srli_epi16(raw.v, 4 * i), nibble_table<kOffset>()))};
  }
};
using DotQ4_0 = DotNibbles<ReadQ4_0, 8, false>;
using DotQ4_1 = DotNibbles<ReadQ4_1, 0, true>;

#endif

}  // namespace annulus::kernels::ANNULUS_ISA
