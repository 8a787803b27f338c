// SPDX-License-Identifier: Apache-2.0
// Computes  out[r, n] (+)= sum_k x[r, k] w[n, k]
// Tensors   x packed [k][rows] f32, or [k / 2][rows][2] bf16 (AMX: [k / 32][rows][32]); w
//           panels of 32 outputs; out f32
// Mapping   one thread a call; one register tile of kRows x kVecs * 16 outputs at a time
// Tiles     kRows up to 14 (AVX-512), 6 (AVX2), 2 (portable); few rows take more outputs at once,
//           so that enough independent sums hide the latency of an FMA. AMX takes 3 rows and more
//           (matmul_amx.h)
// Numerics  matmul_kernels.h
// Limits    checked in matmul.cc
#include "kernels/cpu/matmul_amx.h"
#include "kernels/cpu/matmul_kernels.h"
#include "kernels/cpu/matmul_weights.h"
#include "kernels/cpu/vec.h"

namespace annulus::kernels::ANNULUS_ISA {
namespace {

#define ANNULUS_LAMBDA __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kTileRows = 14, kDirectRows = 8, kBytesRows = 10;
constexpr int tile_vecs(int rows) {
  return rows <= 4 ? 4 : 2;
}
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kDirectRows = 6;
constexpr int tile_vecs(int rows) {
  return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}
#else
constexpr int kTileRows = 2, kDirectRows = 2;
constexpr int tile_vecs(int rows) {
  return rows == 1 ? 2 : 1;
}
#endif
static_assert(kTileRows <= kMaxTileRows);

// f(r, v) for every row and vector of a tile, unrolled, so that arrays of Vec live in registers.
template <int kRows, int kVecs, class F>
ANNULUS_INLINE void for_tile(const F& f) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) f(r, v);
}

// One register tile: vector v is half (first_half + v) % 2 of panel (first_half + v) / 2.
struct Place {
  const char* w;
  int first_half;
  float* out;
  int64_t n;  // outputs that exist from out on

  ANNULUS_INLINE int lanes(int64_t n, int v) {
    int64_t left = n - v * kLanes;
    return left <= 0 ? 0 : left >= kLanes ? kLanes : static_cast<int>(left);
  }
};

template <int kRows, int kVecs>
ANNULUS_INLINE void begin(const MatmulTile& tile, const Place& at, Vec (&acc)[kRows][kVecs]) {
  if (!tile.accumulate) {
    for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA { acc[r][v] = zero(); });
  } else if (at.n >= kVecs * kLanes) {
    for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA {
      acc[r][v] = load(at.out + r * tile.out_stride + v * kLanes);
    });
  } else {
    for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA {
      acc[r][v] = load_n(at.out + r * tile.out_stride + v * kLanes, Place::lanes(at.n, v));
    });
  }
}

template <int kRows, int kVecs>
ANNULUS_INLINE void finish(const MatmulTile& tile, const Place& at,
                           const Vec (&acc)[kRows][kVecs]) {
  if (at.n >= kVecs * kLanes) {
    for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA {
      store(at.out + r * tile.out_stride + v * kLanes, acc[r][v]);
    });
  } else {
    for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA {
      store_n(at.out + r * tile.out_stride + v * kLanes, acc[r][v], Place::lanes(at.n, v));
    });
  }
}

template <class Reader, int kRows, int kVecs>
void multiply_f32(const MatmulTile& tile, const Place& at) {
  Vec acc[kRows][kVecs];
  begin(tile, at, acc);
  const auto* x = static_cast<const float*>(tile.x);
  const char* w[(kVecs + 1) / 2];
  for (int p = 0; p < (kVecs + 1) / 2; ++p) w[p] = at.w + p * tile.panel_stride_bytes;
  const int half = kVecs == 1 ? at.first_half : 0;
  for (int64_t k = 0; k < tile.k; k += Reader::kBlock) {
    // Half a panel at a time skips every other line, which prefetchers follow badly.
    if constexpr (kVecs == 1 && Reader::kBlockBytes == 128) prefetch<Reader, 1, 2048>(tile, k, w);
    if constexpr (kVecs > 1 && Reader::kBlock == 32)
      prefetch<Reader, kVecs / 2, kAheadOfBlocks>(tile, k, w);
    typename Reader::Scales scales[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) scales[v] = Reader::scales(w[v / 2], half + v % 2);
    for (int step = 0; step < Reader::kBlock / Reader::kStep; ++step) {
      typename Reader::Raw raw[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) raw[v] = Reader::raw(w[v / 2], step, half + v % 2);
      unroll<Reader::kStep>([&](auto i) ANNULUS_LAMBDA {
        constexpr int kInput = decltype(i)::value;
        Vec weights[kVecs];
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v)
          weights[v] = Reader::template f32<kInput>(raw[v], scales[v]);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          Vec xr = set1(x[kInput * kRows + r]);
#pragma GCC unroll 8
          for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(xr, weights[v], acc[r][v]);
        }
      });
      x += Reader::kStep * kRows;
    }
#pragma GCC unroll 4
    for (int p = 0; p < (kVecs + 1) / 2; ++p) w[p] += Reader::kBlockBytes;
  }
  finish(tile, at, acc);
}

#if defined(ANNULUS_HAS_BF16_DOT) && !defined(ANNULUS_HAS_AMX)

// sum += the products of one block.
template <class Reader, int kRows, int kVecs>
ANNULUS_INLINE void dot_block(const char* const* w, const bf16*& x, Vec (&sum)[kRows][kVecs]) {
  for (int step = 0; step < Reader::kBlock / Reader::kStep; ++step) {
    typename Reader::Raw raw[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) raw[v] = Reader::raw(w[v / 2], step, v % 2);
    unroll<Reader::kStep / 2>([&](auto i) ANNULUS_LAMBDA {
      constexpr int kPair = decltype(i)::value;
      Pairs weights[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) weights[v] = Reader::template pairs<kPair>(raw[v]);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        Pairs xr = broadcast_pair(x + (kPair * kRows + r) * 2);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sum[r][v] = dot_pairs(sum[r][v], xr, weights[v]);
      }
    });
    x += Reader::kStep * kRows;
  }
}

template <class Reader, int kRows, int kVecs>
void multiply_dot(const MatmulTile& tile, const Place& at) {
  Vec acc[kRows][kVecs];
  begin(tile, at, acc);
  const auto* x = static_cast<const bf16*>(tile.x);
  const float* x_sums = tile.x_sums;
  const char* w[kVecs / 2];
  for (int p = 0; p < kVecs / 2; ++p) w[p] = at.w + p * tile.panel_stride_bytes;
  // Totals of large scaled tiles do not fit into registers beside the sums of a block.
  alignas(64) float total[kRows * kVecs * kLanes];
  constexpr bool kSpill = Reader::kScaled && kRows * kVecs > 14;
  if constexpr (kSpill)
    for_tile<kRows, kVecs>(
        [&](int r, int v) ANNULUS_LAMBDA { store(total + (r * kVecs + v) * kLanes, acc[r][v]); });
  for (int64_t k = 0; k < tile.k; k += Reader::kBlock) {
    if constexpr (!Reader::kScaled) {
      dot_block<Reader, kRows, kVecs>(w, x, acc);
    } else {
      // Tiles of 2 vectors serve prompts too, whose later rows find the weights in a cache.
      if constexpr (kVecs == 4) prefetch<Reader, 2, kAheadOfBlocks>(tile, k, w);
      Vec sum[kRows][kVecs];
      for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA { sum[r][v] = zero(); });
      dot_block<Reader, kRows, kVecs>(w, x, sum);
      typename Reader::Scales scales[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) scales[v] = Reader::scales(w[v / 2], v % 2);
      for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA {
        float* spilled = total + (r * kVecs + v) * kLanes;
        Vec t = fma(scales[v].d, sum[r][v], kSpill ? load(spilled) : acc[r][v]);
        if constexpr (Reader::kMinima) t = fma(scales[v].m, set1(x_sums[r]), t);
        if constexpr (kSpill)
          store(spilled, t);
        else
          acc[r][v] = t;
      });
      if constexpr (Reader::kMinima) x_sums += kRows;
    }
#pragma GCC unroll 4
    for (int p = 0; p < kVecs / 2; ++p) w[p] += Reader::kBlockBytes;
  }
  if constexpr (kSpill)
    for_tile<kRows, kVecs>(
        [&](int r, int v) ANNULUS_LAMBDA { acc[r][v] = load(total + (r * kVecs + v) * kLanes); });
  finish(tile, at, acc);
}

#endif

#if defined(ANNULUS_HAS_AMX)

// What tiles give (amx.h), for few rows: loads of vectors reach memory earlier than those of tiles.
template <class Reader, int kRows, int kVecs>
void multiply_few(const MatmulTile& tile, const Place& at) {
  Vec acc[kRows][kVecs];
  begin(tile, at, acc);
  const auto* x = static_cast<const bf16*>(tile.x);
  const float* x_sums = tile.x_sums;
  const char* w[kVecs / 2];
  for (int p = 0; p < kVecs / 2; ++p) w[p] = at.w + p * tile.panel_stride_bytes;
  const auto even = [](IVec pairs) ANNULUS_LAMBDA { return bits_as_float(shift_left<16>(pairs)); };
  const auto odd = [](IVec pairs)
                       ANNULUS_LAMBDA { return bits_as_float(bit_and(pairs, 0xffff0000u)); };
  // The last block of bf16 weights may have fewer inputs.
  for (int64_t k = 0; k < tile.k; k += Reader::kBlock) {
    const int64_t left = (tile.k - k + Reader::kStep - 1) / Reader::kStep;
    constexpr int kSteps = Reader::kBlock / Reader::kStep;
    if constexpr (Reader::kScaled && kVecs == 4) prefetch<Reader, 2, kAheadOfBlocks>(tile, k, w);
    Vec evens[kRows][kVecs], odds[kRows][kVecs];
    for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA { evens[r][v] = odds[r][v] = zero(); });
    for (int step = 0; step < (left < kSteps ? left : kSteps); ++step) {
      typename Reader::Raw raw[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) raw[v] = Reader::raw(w[v / 2], step, v % 2);
      unroll<Reader::kStep / 2>([&](auto i) ANNULUS_LAMBDA {
        constexpr int kPair = decltype(i)::value;
        IVec weights[kVecs];
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v)
          weights[v] = {reinterpret_cast<__m512i>(Reader::template pairs<kPair>(raw[v]).v)};
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const bf16* at_pair = x + r * kAmxInputs + step * Reader::kStep + 2 * kPair;
          const IVec xr = {reinterpret_cast<__m512i>(broadcast_pair(at_pair).v)};
#pragma GCC unroll 8
          for (int v = 0; v < kVecs; ++v) {
            evens[r][v] = fma(even(xr), even(weights[v]), evens[r][v]);
            odds[r][v] = fma(odd(xr), odd(weights[v]), odds[r][v]);
          }
        }
      });
    }
    for_tile<kRows, kVecs>([&](int r, int v) ANNULUS_LAMBDA {
      const Vec sum = add(evens[r][v], odds[r][v]);
      if constexpr (Reader::kScaled) {
        const typename Reader::Scales scales = Reader::scales(w[v / 2], v % 2);
        acc[r][v] = fma(scales.d, sum, acc[r][v]);
        if constexpr (Reader::kMinima) acc[r][v] = fma(scales.m, set1(x_sums[r]), acc[r][v]);
      } else {
        acc[r][v] = add(acc[r][v], sum);
      }
    });
    if constexpr (Reader::kMinima) x_sums += kRows;
    x += kRows * kAmxInputs;
#pragma GCC unroll 4
    for (int p = 0; p < kVecs / 2; ++p) w[p] += Reader::kBlockBytes;
  }
  finish(tile, at, acc);
}

#endif

template <class Reader, bool kDot, int kRows, int kVecs>
ANNULUS_INLINE void multiply(const MatmulTile& tile, const Place& at) {
#if defined(ANNULUS_HAS_AMX)
  if constexpr (kDot)
    multiply_few<Reader, kRows, kVecs>(tile, at);
  else
#endif
#if defined(ANNULUS_HAS_BF16_DOT) && !defined(ANNULUS_HAS_AMX)
      if constexpr (kDot)
    multiply_dot<Reader, kRows, kVecs>(tile, at);
  else
#endif
    multiply_f32<Reader, kRows, kVecs>(tile, at);
}

// All panels of the call, as many outputs at once as the rows allow. Decoding nibbles needs the
// registers that twice the outputs of a row would take, where there are 16 of them.
template <class Reader, bool kDot, int kRows>
void tile_panels(const MatmulTile& tile) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  constexpr int kVecs = kRows == 1 && Reader::kStep == 8 ? 2 : tile_vecs(kRows);
#else
  constexpr int kVecs = tile_vecs(kRows);
#endif
  Place at{reinterpret_cast<const char*>(tile.w), 0, tile.out, tile.n};
  int64_t halves_left = 2 * tile.panels;
  if constexpr (kVecs > 2)
    for (; halves_left >= kVecs; halves_left -= kVecs) {
      multiply<Reader, kDot, kRows, kVecs>(tile, at);
      at.w += kVecs / 2 * tile.panel_stride_bytes;
      at.out += kVecs * kLanes;
      at.n -= kVecs * kLanes;
    }
  constexpr int kRest = kVecs > 2 ? 2 : kVecs;
  for (; halves_left > 0 && at.n > 0; halves_left -= kRest) {
    multiply<Reader, kDot, kRows, kRest>(tile, at);
    if (kRest == 2 || at.first_half == 1) at.w += tile.panel_stride_bytes;
    if (kRest == 1) at.first_half ^= 1;
    at.out += kRest * kLanes;
    at.n -= kRest * kLanes;
  }
}

// A whole panel as f32 [k][32].
template <class Reader>
void to_f32(const std::byte* panel, int64_t k, void* decoded) {
  const char* w = reinterpret_cast<const char*>(panel);
  auto* out = static_cast<float*>(decoded);
  for (; k > 0; k -= Reader::kBlock, w += Reader::kBlockBytes) {
    typename Reader::Scales scales[2] = {Reader::scales(w, 0), Reader::scales(w, 1)};
    for (int step = 0; step < Reader::kBlock / Reader::kStep; ++step)
      for (int half = 0; half < 2; ++half) {
        auto raw = Reader::raw(w, step, half);
        float* to = out + step * Reader::kStep * 32 + half * kLanes;
        unroll<Reader::kStep>([&](auto i) ANNULUS_LAMBDA {
          constexpr int kInput = decltype(i)::value;
          store(to + kInput * 32, Reader::template f32<kInput>(raw, scales[half]));
        });
      }
    out += Reader::kBlock * 32;
  }
}

#if defined(__AVX512F__)

// 16 x 16 dwords: row i of the result is column i.
ANNULUS_INLINE void transpose(__m512i (&t)[16]) {
  __m512i u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    u[i] = _mm512_unpacklo_epi32(t[i], t[i + 1]);
    u[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      t[i + 2 * j] = _mm512_unpacklo_epi64(u[i + j], u[i + j + 2]);
      t[i + 2 * j + 1] = _mm512_unpackhi_epi64(u[i + j], u[i + j + 2]);
    }
    // Column c of rows 4g..4g+3 is now in 128-bit lane c / 4 of t[4g + c % 4].
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    __m512i a = _mm512_shuffle_i32x4(t[c], t[c + 4], 0x88);
    __m512i b = _mm512_shuffle_i32x4(t[c], t[c + 4], 0xdd);
    __m512i d = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0x88);
    __m512i e = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0xdd);
    u[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    u[c + 8] = _mm512_shuffle_i32x4(a, d, 0xdd);
    u[c + 4] = _mm512_shuffle_i32x4(b, e, 0x88);
    u[c + 12] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) t[i] = u[i];
}

// The first count columns of t, rows elements each.
ANNULUS_INLINE void store_columns(const __m512i (&t)[16], int rows, int64_t count, void* out) {
  __mmask16 mask = first_n(rows).m;
  auto* p = static_cast<uint32_t*>(out);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if (i < count) _mm512_mask_storeu_epi32(p + i * rows, mask, t[i]);
}

void pack_f32(const float* x, int64_t stride, int rows, int64_t k, float* out) {
  for (int64_t at = 0; at < k; at += 16) {
    int64_t count = k - at < 16 ? k - at : 16;
    __m512i t[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r)
      t[r] = r < rows
                 ? _mm512_maskz_loadu_epi32(first_n(static_cast<int>(count)).m, x + r * stride + at)
                 : _mm512_setzero_si512();
    transpose(t);
    store_columns(t, rows, count, out + at * rows);
  }
}

#else

void pack_f32(const float* x, int64_t stride, int rows, int64_t k, float* out) {
  for (int r = 0; r < rows; ++r)
    for (int64_t i = 0; i < k; ++i) out[i * rows + r] = x[r * stride + i];
}

#endif

#if defined(ANNULUS_HAS_BF16_DOT) && !defined(ANNULUS_HAS_AMX)

void pack_bf16(const float* x, int64_t stride, int rows, int64_t k, uint16_t* out, float* sums) {
  const Pairs ones = {reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80))};
  for (int64_t at = 0; at < k; at += 32) {
    int64_t count = k - at < 32 ? k - at : 32;
    int low = count < 16 ? static_cast<int>(count) : 16, high = static_cast<int>(count) - low;
    __m512i t[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      t[r] = _mm512_setzero_si512();
      if (r < rows) {
        const float* p = x + r * stride + at;
        t[r] = reinterpret_cast<__m512i>(
            _mm512_cvtne2ps_pbh(load_n(p + 16, high).v, load_n(p, low).v));
      }
    }
    transpose(t);
    store_columns(t, rows, (count + 1) / 2, out + at * rows);
    if (sums != nullptr) {
      Vec sum = zero();
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) sum = dot_pairs(sum, {reinterpret_cast<__m512bh>(t[i])}, ones);
      store_n(sums + at / 32 * rows, sum, rows);
    }
  }
}

#endif

template <class Reader, bool kDot, int kLimit, int kRows = 1>
constexpr void fill(MatmulKernels& kernels, MatmulKind kind) {
  kernels.tile[kind][kRows - 1] = tile_panels<Reader, kDot, kRows>;
  kernels.tile_rows[kind] = kRows;
  if constexpr (kRows < kLimit) fill<Reader, kDot, kLimit, kRows + 1>(kernels, kind);
}

constexpr MatmulKernels make_kernels() {
  MatmulKernels kernels{};
  kernels.pack_f32 = pack_f32;
  fill<ReadF32, false, kTileRows>(kernels, kTileF32);
#if defined(ANNULUS_HAS_AMX)
  kernels.bf16_dot = true;
  kernels.k_unit = kAmxInputs;
  kernels.pack_bf16 = pack_units;
  kernels.begin = begin_tiles;
  kernels.end = end_tiles;
  fill<BlockBF16, true, kFewRows>(kernels, kTileBF16);
  fill<DotQ8_0, true, kFewRows>(kernels, kTileQ8_0);
  fill<DotQ4_0, true, kFewRows>(kernels, kTileQ4_0);
  fill<DotQ4_1, true, kFewRows>(kernels, kTileQ4_1);
  fill_amx_bf16<kFewRows + 1>(kernels);
  fill_amx_blocks<DotQ8_0, kFewRows + 1>(kernels, kTileQ8_0);
  fill_amx_blocks<DotQ4_0, kFewRows + 1>(kernels, kTileQ4_0);
  fill_amx_blocks<DotQ4_1, kFewRows + 1>(kernels, kTileQ4_1);
#elif defined(ANNULUS_HAS_BF16_DOT)
  kernels.bf16_dot = true;
  kernels.k_unit = 2;
  kernels.pack_bf16 = pack_bf16;
  fill<DotBF16, true, kTileRows>(kernels, kTileBF16);
  fill<DotQ8_0, true, kBytesRows>(kernels, kTileQ8_0);
  fill<DotQ4_0, true, kDirectRows>(kernels, kTileQ4_0);
  fill<DotQ4_1, true, kDirectRows>(kernels, kTileQ4_1);
#else
  fill<ReadBF16, false, kDirectRows>(kernels, kTileBF16);
  fill<ReadQ8_0, false, kDirectRows>(kernels, kTileQ8_0);
  fill<ReadQ4_0, false, kDirectRows>(kernels, kTileQ4_0);
  fill<ReadQ4_1, false, kDirectRows>(kernels, kTileQ4_1);
  kernels.decode[kTileBF16] = to_f32<ReadBF16>;
  kernels.decode[kTileQ8_0] = to_f32<ReadQ8_0>;
  kernels.decode[kTileQ4_0] = to_f32<ReadQ4_0>;
  kernels.decode[kTileQ4_1] = to_f32<ReadQ4_1>;
#endif
  return kernels;
}

}  // namespace

extern constexpr MatmulKernels kMatmulKernels = make_kernels();

}  // namespace annulus::kernels::ANNULUS_ISA
