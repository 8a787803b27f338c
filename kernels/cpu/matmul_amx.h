// SPDX-License-Identifier: Apache-2.0
// Tiles of matmul on AMX: 3 to 16 rows of x, whose blocks of 32 inputs are tiles of A, filled up
// with zeros. Panels of bf16 weights are tiles of B as they lie; block weights are
// decoded to the same form (q, exact in bf16), and each block's sums are scaled in vectors. The
// numerics are those of matmul_kernels.h. Included by matmul_impl.cc only.
#pragma once

#include "kernels/cpu/amx.h"
#include "kernels/cpu/matmul_kernels.h"
#include "kernels/cpu/matmul_weights.h"

#if defined(ANNULUS_HAS_AMX)

namespace annulus::kernels::ANNULUS_ISA {

inline constexpr int64_t kPairBytes = 128;                       // a pair of inputs of a panel
inline constexpr int64_t kDecodedBytes = 16 * kPairBytes;        // a block of a panel
inline constexpr int64_t kPanelHalves = 2, kBlocksInFlight = 4;  // tiles of sums: 0..3

inline constexpr int64_t kXBytes = kAmxInputs * 2;  // a row of a tile of A

inline constexpr int kFewRows = 2;  // in vectors: their loads reach memory earlier than tiles

// Subnormals count as 0 in vectors too, as they do in tiles.
inline constexpr unsigned kNoSubnormals = 0x8040;  // of MXCSR: FTZ and DAZ

static void begin_tiles(int rows) {
  _mm_setcsr(_mm_getcsr() | kNoSubnormals);
  if (rows <= kFewRows) return;
  const TileConfig config = tile_config(rows);
  tile_fence();
  _tile_loadconfig(&config);
}
static void end_tiles(int rows) {
  if (rows > kFewRows) _tile_release();
  _mm_setcsr(_mm_getcsr() & ~kNoSubnormals);
}

// bf16 weights in blocks, as tiles sum them.
struct BlockBF16 {
  static constexpr int kBlock = kAmxInputs, kStep = 2, kBlockBytes = kDecodedBytes;
  static constexpr bool kScaled = false, kMinima = false;
  using Raw = IVec;
  ANNULUS_INLINE Raw raw(const char* block, int step, int half) {
    return load_dwords(block + step * kPairBytes + half * 64);
  }
  template <int i>
  ANNULUS_INLINE Pairs pairs(const Raw& raw) {
    return {reinterpret_cast<__m512bh>(raw.v)};
  }
};

// rows x 16 floats, of which n a row exist, to or from memory that has room for whole rows.
ANNULUS_INLINE void copy_some(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                              int rows, int n) {
  for (int r = 0; r < rows; ++r) store_n(to + r * to_stride, load_n(from + r * from_stride, n), n);
}

struct AmxHalf {  // 16 outputs of a panel
  float* out;
  int lanes;  // of them exist
};
ANNULUS_INLINE AmxHalf half_of(const MatmulTile& tile, int64_t half) {
  const int64_t left = tile.n - half * kAmxOutputs;
  return {tile.out + half * kAmxOutputs, left <= 0 ? 0 : left >= 16 ? 16 : static_cast<int>(left)};
}

// Sums of tile T begin, or are stored, at `half`; `spare` holds a tile.
#define ANNULUS_BEGIN_SUMS(T, half)                                              \
  if (!tile.accumulate || half.lanes == 0) {                                     \
    _tile_zero(T);                                                               \
  } else if (half.lanes == kAmxOutputs) {                                        \
    _tile_loadd(T, half.out, tile.out_stride * 4);                               \
  } else {                                                                       \
    copy_some(half.out, tile.out_stride, spare, kAmxOutputs, kRows, half.lanes); \
    tile_fence();                                                                \
    _tile_loadd(T, spare, 64);                                                   \
  }
#define ANNULUS_STORE_SUMS(T, half)                                              \
  if (half.lanes == kAmxOutputs) {                                               \
    _tile_stored(T, half.out, tile.out_stride * 4);                              \
  } else if (half.lanes > 0) {                                                   \
    _tile_stored(T, spare, 64);                                                  \
    tile_fence();                                                                \
    copy_some(spare, kAmxOutputs, half.out, tile.out_stride, kRows, half.lanes); \
  }

// bf16 weights: one panel, or two side by side, which share the loads of x.
template <int kRows, int kPanels>
ANNULUS_INLINE void multiply_panels(const MatmulTile& tile, int64_t panel) {
  alignas(64) float spare[kRows * kAmxOutputs];
  alignas(64) char last[kPanels][kDecodedBytes];
  const AmxHalf h0 = half_of(tile, 2 * panel), h1 = half_of(tile, 2 * panel + 1);
  const AmxHalf h2 = half_of(tile, 2 * panel + 2), h3 = half_of(tile, 2 * panel + 3);
  tile_fence();
  ANNULUS_BEGIN_SUMS(0, h0)
  ANNULUS_BEGIN_SUMS(1, h1)
  if constexpr (kPanels == 2) {
    ANNULUS_BEGIN_SUMS(2, h2)
    ANNULUS_BEGIN_SUMS(3, h3)
  }
  const char* x = static_cast<const char*>(tile.x);
  const auto add_block = [&](const char* first, const char* second) __attribute__((always_inline)) {
    _tile_loadd(4, x, kXBytes);
    _tile_loadd(5, first, kPairBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, first + 64, kPairBytes);
    _tile_dpbf16ps(1, 4, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, second, kPairBytes);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, second + 64, kPairBytes);
      _tile_dpbf16ps(3, 4, 5);
    }
    x += kRows * kXBytes;
  };
  const char* first = reinterpret_cast<const char*>(tile.w) + panel * tile.panel_stride_bytes;
  const char* second = first + (kPanels - 1) * tile.panel_stride_bytes;
  int64_t left = tile.k;
  for (; left >= kAmxInputs; left -= kAmxInputs) {
    if (tile.streams) {
      const char* const w[] = {first, second};
      prefetch<BlockBF16, kPanels, kAheadOfBlocks>(tile, tile.k - left, w);
    }
    add_block(first, second);
    first += kDecodedBytes;
    second += kDecodedBytes;
  }
  if (left > 0) {  // what lies behind the panel may be anything
    const char* ends[] = {first, second};
    for (int p = 0; p < kPanels; ++p)
      for (int64_t at = 0; at < kDecodedBytes; at += 64) {
        const bool exists = at < (left + 1) / 2 * kPairBytes;
        const __m512i pairs = exists ? _mm512_loadu_si512(ends[p] + at) : _mm512_setzero_si512();
        _mm512_store_si512(last[p] + at, pairs);
      }
    tile_fence();
    add_block(last[0], last[kPanels - 1]);
  }
  ANNULUS_STORE_SUMS(0, h0)
  ANNULUS_STORE_SUMS(1, h1)
  if constexpr (kPanels == 2) {
    ANNULUS_STORE_SUMS(2, h2)
    ANNULUS_STORE_SUMS(3, h3)
  }
  tile_fence();
}

template <int kRows>
static void amx_bf16(const MatmulTile& tile) {
  int64_t panel = 0;
  for (; panel + 2 <= tile.panels; panel += 2) multiply_panels<kRows, 2>(tile, panel);
  if (panel < tile.panels) multiply_panels<kRows, 1>(tile, panel);
}

// 32 inputs of 16 outputs: q as a tile of B whose rows lie `stride` bytes apart.
template <class Reader>
ANNULUS_INLINE void decode_half(const char* block, int half, char* to, int64_t stride) {
  for (int step = 0; step < Reader::kBlock / Reader::kStep; ++step) {
    const typename Reader::Raw raw = Reader::raw(block, step, half);
    unroll<Reader::kStep / 2>([&](auto i) __attribute__((always_inline)) {
      constexpr int kPair = decltype(i)::value;
      const Pairs pairs = Reader::template pairs<kPair>(raw);
      _mm512_store_si512(to + kPair * stride, reinterpret_cast<__m512i>(pairs.v));
    });
    to += Reader::kStep / 2 * stride;
  }
}

// k inputs of a panel, for the tiles that will meet them.
template <class Reader>
static void decode_panel(const std::byte* panel, int64_t k, void* out) {
  const char* block = reinterpret_cast<const char*>(panel);
  char* to = static_cast<char*>(out);
  for (; k > 0; k -= Reader::kBlock, block += Reader::kBlockBytes, to += kDecodedBytes) {
    decode_half<Reader>(block, 0, to, kPairBytes);
    decode_half<Reader>(block, 1, to + 64, kPairBytes);
  }
}

// Block weights, 16 outputs: sums of up to four blocks are under way at a time.
template <class Reader, int kRows>
ANNULUS_INLINE void multiply_half(const MatmulTile& tile, int64_t panel, int half) {
  alignas(64) float sums[kBlocksInFlight][kRows * kAmxOutputs];
  alignas(64) char decoded[kBlocksInFlight][kDecodedBytes / kPanelHalves];
  const AmxHalf at = half_of(tile, 2 * panel + half);
  if (at.lanes == 0) return;
  Vec acc[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
    acc[r] = tile.accumulate ? load_n(at.out + r * tile.out_stride, at.lanes) : zero();
  const char* w = reinterpret_cast<const char*>(tile.w) + panel * tile.panel_stride_bytes;
  const bool apart = tile.decoded != nullptr;
  const char* const ready =
      apart ? reinterpret_cast<const char*>(tile.decoded) + half * 64 : nullptr;
  const char* x = static_cast<const char*>(tile.x);
  const int64_t blocks = tile.k / Reader::kBlock;
  const float* x_sums = tile.x_sums;
  for (int64_t first = 0; first < blocks; first += kBlocksInFlight) {
    const int64_t left = blocks - first, count = left < kBlocksInFlight ? left : kBlocksInFlight;
    if (!apart) {
      for (int64_t b = 0; b < count; ++b) {
        const char* block = w + b * Reader::kBlockBytes;
        if (half == 0)
          prefetch<Reader, 1, kAheadOfBlocks>(tile, (first + b) * Reader::kBlock, &block);
        decode_half<Reader>(block, half, decoded[b], 64);
      }
    }
    tile_fence();
    const int64_t stride = apart ? kPairBytes : 64;
    const auto tile_of = [&](int64_t b) __attribute__((always_inline)) {
      return apart ? ready + (first + b) * kDecodedBytes : decoded[b];
    };
#define ANNULUS_BLOCK(B, W)                           \
  if (B < count) {                                    \
    _tile_loadd(4, x + B * kRows * kXBytes, kXBytes); \
    _tile_loadd(W, tile_of(B), stride);               \
    _tile_zero(B);                                    \
    _tile_dpbf16ps(B, 4, W);                          \
  }
    ANNULUS_BLOCK(0, 5)
    ANNULUS_BLOCK(1, 6)
    ANNULUS_BLOCK(2, 7)
    ANNULUS_BLOCK(3, 5)
#undef ANNULUS_BLOCK
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    tile_fence();
    for (int64_t b = 0; b < count; ++b) {
      const typename Reader::Scales scales = Reader::scales(w, half);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        acc[r] = fma(scales.d, load(sums[b] + r * kAmxOutputs), acc[r]);
        if constexpr (Reader::kMinima) acc[r] = fma(scales.m, set1(x_sums[r]), acc[r]);
      }
      w += Reader::kBlockBytes;
      if constexpr (Reader::kMinima) x_sums += kRows;
    }
    x += count * kRows * kXBytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) store_n(at.out + r * tile.out_stride, acc[r], at.lanes);
}

template <class Reader, int kRows>
static void amx_blocks(const MatmulTile& tile) {
  for (int64_t panel = 0; panel < tile.panels; ++panel) {
    multiply_half<Reader, kRows>(tile, panel, 0);
    multiply_half<Reader, kRows>(tile, panel, 1);
  }
}

// x as bf16 [k / 32][rows][32]; sums of 32 rounded values each.
static void pack_units(const float* x, int64_t stride, int rows, int64_t k, uint16_t* out,
                       float* sums) {
  const Pairs ones = {reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80))};
  for (int r = 0; r < rows; ++r) {
    for (int64_t at = 0; at < k; at += kAmxInputs) {
      const int64_t count = k - at < kAmxInputs ? k - at : kAmxInputs;
      const int low = count < 16 ? static_cast<int>(count) : 16;
      const float* p = x + r * stride + at;
      const int high = static_cast<int>(count) - low;
      const Pairs pairs = {_mm512_cvtne2ps_pbh(load_n(p + 16, high).v, load_n(p, low).v)};
      _mm512_storeu_si512(out + at * rows + r * kAmxInputs, reinterpret_cast<__m512i>(pairs.v));
      if (sums != nullptr)
        sums[at / kAmxInputs * rows + r] = reduce_add(dot_pairs(zero(), pairs, ones));
    }
  }
}

template <class Reader, int kRows>
constexpr void fill_amx_blocks(MatmulKernels& kernels, MatmulKind kind) {
  kernels.tile[kind][kRows - 1] = amx_blocks<Reader, kRows>;
  if constexpr (kRows < kAmxRows) fill_amx_blocks<Reader, kRows + 1>(kernels, kind);
  kernels.tile_rows[kind] = kAmxRows;
  kernels.decode[kind] = decode_panel<Reader>;
  kernels.decoded[kind] = kind;
}
template <int kRows>
constexpr void fill_amx_bf16(MatmulKernels& kernels) {
  kernels.tile[kTileBF16][kRows - 1] = amx_bf16<kRows>;
  if constexpr (kRows < kAmxRows) fill_amx_bf16<kRows + 1>(kernels);
  kernels.tile_rows[kTileBF16] = kAmxRows;
}

}  // namespace annulus::kernels::ANNULUS_ISA

#endif
