// SPDX-License-Identifier: Apache-2.0
// Few-row attention with AMX. Rows of K are tiles of A where they lie, 16 keys by 32 elements. q,
// transposed once, is B, each KV head's rows in columns of their own and zero elsewhere, so that
// the heads' products add up to one tile of scores, 16 keys by all rows, which is turned. P V of
// up to kMostWide rows a head is fp32 in vectors: a load of V is 32 columns, its even ones shifted
// up, its odd ones masked; pairing rows of V for tiles costs more. Of more rows, tiles: V's rows
// are paired to tiles of B; P is A. Numerics as attention_impl.cc, where P in vectors stays fp32.
// Included by it only.
#pragma once

#include "kernels/cpu/attention_fetch.h"
#include "kernels/cpu/attention_rows.h"

#if defined(ANNULUS_HAS_AMX)

namespace annulus::kernels::ANNULUS_ISA {

// P_: what P is in, WideDot or PairDot.
template <class P_>
class FewTiles {
 public:
  using P = P_;
  static constexpr bool kWide = P::kPerWord == 1;
  static constexpr int32_t kMostWide = 4;

  __attribute__((always_inline)) static bool take(const AttendBlock& block) {
    return tiles(block) * block.kv_heads <= kMostTiles &&
           (!kWide || block.rows * block.group <= kMostWide);
  }

  // Tiles 0 to 3: scores [16 keys][rows], 5, 7: K, 6: q. With P in tiles, scores have 0 and 1; 2: P
  // [m][32 keys], 3, 4: o [m][16], 6, 7: V.
  __attribute__((always_inline)) FewTiles(const AttendBlock& block, const Scratch& s, int32_t m)
      : block_(block),
        s_(s),
        m_(m),
        d_(block.head_dim),
        tiles_(tiles(block)),
        heads_at_once_(kAmxOutputs / m) {
    TileConfig config = tile_config(kAmxRows);
    for (int t = 2; t <= 4 && !kWide; ++t) config.rows[t] = static_cast<uint8_t>(m);
    tile_fence();
    _tile_loadconfig(&config);
    for (int32_t head = 0; head < block.kv_heads; ++head) {
      const int32_t column = head % heads_at_once_ * m;
      for (int32_t i = 0; i < tiles_; ++i) {
        Vec in[16];
        for (int j = 0; j < 16; ++j) {
          const bool there = j >= column && j < column + m;
          const auto* row =
              reinterpret_cast<const float*>(s.q) + (int64_t{head} * m + j - column) * d_ / 2;
          in[j] = there ? load(row + i * 16) : zero();
        }
        transpose(in, q_tile(head, i), 16);
      }
    }
    tile_fence();
  }

  __attribute__((always_inline)) ~FewTiles() { _tile_release(); }  // also where a poll throws
  FewTiles(const FewTiles&) = delete;
  FewTiles& operator=(const FewTiles&) = delete;

  // Of a tile of keys, all heads.
  __attribute__((always_inline)) void score(const KeyTile& tile, Fetch& fetch) {
    for (int32_t head = 0; head < block_.kv_heads; head += heads_at_once_) {
      const int32_t left = block_.kv_heads - head;
      const int32_t heads = left < heads_at_once_ ? left : heads_at_once_;
      for (int32_t key = 0; key < kTile; key += 16 * kGroups) {
        bool together = true;  // else 16 keys lie on several pages, or are padding
        for (int32_t j = 1; j < 16 * kGroups; ++j)
          together = together && (j % 16 == 0 ||
                                  tile.rows[key + j] - tile.rows[key + j - 1] == block_.row_bytes);
        if (together) {
          score_keys<kGroups>(head, heads, tile.rows + key, key, fetch);
        } else {
          for (int32_t group = key; group < key + 16 * kGroups; group += 16)
            score_copied(head, heads, tile.rows + group, group, fetch);
        }
      }
    }
  }

  __attribute__((always_inline)) void output(int32_t head, const KeyTile& tile, Fetch& fetch) {
    if constexpr (kWide) {
      switch (m_) {
        case 1: return output_rows<1>(head, tile, fetch);
        case 2: return output_rows<2>(head, tile, fetch);
        case 3: return output_rows<3>(head, tile, fetch);
        default: return output_rows<kMostWide>(head, tile, fetch);
      }
    } else {
      output_tiles(head, tile, fetch);
    }
  }

 private:
  static constexpr int32_t kMostTiles = 32;
  __attribute__((always_inline)) static int32_t tiles(const AttendBlock& block) {
    return block.head_dim / 32;
  }
  __attribute__((always_inline)) float* q_tile(int32_t head, int32_t i) {
    return q_ + (head * tiles_ + i) * 256;
  }

  // 16 keys each, whose products do not wait for each other's, and a tile of q serves all.
  static constexpr int kGroups = kWide ? 4 : 2;

  template <int kCount>
  __attribute__((always_inline)) void score_keys(int32_t first, int32_t heads,
                                                 const std::byte* const* rows, int32_t key,
                                                 Fetch& fetch) {
    const int64_t offset = block_.k_offset_bytes + int64_t{first} * d_ * 2;
    const std::byte* k[kCount];
    for (int g = 0; g < kCount; ++g) k[g] = rows[16 * g] + offset;
    score_groups<kCount>(first, heads, k, block_.row_bytes, key, fetch);
  }
  __attribute__((always_inline)) void score_copied(int32_t first, int32_t heads,
                                                   const std::byte* const* rows, int32_t key,
                                                   Fetch& fetch) {
    const int64_t offset = block_.k_offset_bytes + int64_t{first} * d_ * 2;
    const int64_t bytes = int64_t{heads} * d_ * 2;
    for (int j = 0; j < 16; ++j)
      for (int64_t at = 0; at < bytes; at += 64)
        _mm512_store_si512(keys_ + j * bytes + at, _mm512_loadu_si512(rows[j] + offset + at));
    const std::byte* k[] = {keys_};
    score_groups<1>(first, heads, k, bytes, key, fetch);
  }
  template <int kCount>
  __attribute__((always_inline)) void score_groups(int32_t first, int32_t heads,
                                                   const std::byte* const (&k)[kCount],
                                                   int64_t stride, int32_t key, Fetch& fetch) {
    alignas(64) float by_key[kCount][16 * 16];
    alignas(64) float by_row[16 * 16];
    tile_fence();
    _tile_zero(0);
    if constexpr (kCount > 1) _tile_zero(1);
    if constexpr (kCount > 2) _tile_zero(2);
    if constexpr (kCount > 2) _tile_zero(3);
    for (int32_t i = 0; i < heads * tiles_; ++i) {  // 32 elements of a key's row
      fetch.keys(kCount * 16 * 64);
      _tile_loadd(6, q_tile(first, i), 64);
      _tile_loadd(7, k[0] + i * 64, stride);
      _tile_dpbf16ps(0, 7, 6);
      if constexpr (kCount > 1) {
        _tile_loadd(5, k[1] + i * 64, stride);
        _tile_dpbf16ps(1, 5, 6);
      }
      if constexpr (kCount > 2) {
        _tile_loadd(7, k[2] + i * 64, stride);
        _tile_dpbf16ps(2, 7, 6);
        _tile_loadd(5, k[3] + i * 64, stride);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
    _tile_stored(0, by_key[0], 64);
    if constexpr (kCount > 1) _tile_stored(1, by_key[1], 64);
    if constexpr (kCount > 2) _tile_stored(2, by_key[2], 64);
    if constexpr (kCount > 2) _tile_stored(3, by_key[3], 64);
    tile_fence();
    for (int g = 0; g < kCount; ++g) {
      Vec in[16];
      ANNULUS_UNROLL
      for (int j = 0; j < 16; ++j) in[j] = load(by_key[g] + 16 * j);
      transpose(in, by_row, 16);
      float* out = s_.scores + int64_t{first} * m_ * kTile + key + 16 * g;
      for (int32_t r = 0; r < heads * m_; ++r) store(out + r * kTile, load(by_row + 16 * r));
    }
  }

  // R rows of o.
  template <int R>
  __attribute__((always_inline)) void output_rows(int32_t head, const KeyTile& tile, Fetch& fetch) {
    const int64_t at = int64_t{head} * R;
    const float* p = s_.scores + at * kTile;
    const int64_t offset = block_.v_offset_bytes + int64_t{head} * d_ * 2;
    int32_t c = 0;
    for (; c + 64 <= d_; c += 64) output_columns<R, 2>(at, c, p, tile.rows, offset + c * 2, fetch);
    for (; c < d_; c += 32) output_columns<R, 1>(at, c, p, tile.rows, offset + c * 2, fetch);
  }
  template <int R, int kLoads>
  __attribute__((always_inline)) void output_columns(int64_t at, int32_t c, const float* p,
                                                     const std::byte* const* rows, int64_t offset,
                                                     Fetch& fetch) {
    // A tile's sum begins at zero: rounding errors grow with 64 + tiles, not with the keys.
    __m512 even[R][kLoads], odd[R][kLoads];
    ANNULUS_UNROLL
    for (int i = 0; i < R * kLoads; ++i)
      even[i / kLoads][i % kLoads] = odd[i / kLoads][i % kLoads] = _mm512_setzero_ps();
    const __m512i high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    for (int key = 0; key < kTile; ++key) {
      fetch.values(64 * kLoads);
      __m512 x[R];
      ANNULUS_UNROLL
      for (int i = 0; i < R; ++i) x[i] = _mm512_set1_ps(p[i * kTile + key]);
      ANNULUS_UNROLL
      for (int l = 0; l < kLoads; ++l) {
        const __m512i v = _mm512_loadu_si512(rows[key] + offset + 64 * l);
        const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        const __m512 top = _mm512_castsi512_ps(_mm512_and_si512(v, high));
        ANNULUS_UNROLL
        for (int i = 0; i < R; ++i) {
          even[i][l] = _mm512_fmadd_ps(x[i], low, even[i][l]);
          odd[i][l] = _mm512_fmadd_ps(x[i], top, odd[i][l]);
        }
      }
    }
    alignas(64) static const int32_t kFirst[16] = {0, 16, 1, 17, 2, 18, 3, 19,
                                                   4, 20, 5, 21, 6, 22, 7, 23};
    const __m512i first = _mm512_load_si512(kFirst);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    ANNULUS_UNROLL
    for (int i = 0; i < R; ++i) {
      const __m512 factor = _mm512_set1_ps(s_.rows.correction[at + i]);
      ANNULUS_UNROLL
      for (int l = 0; l < kLoads; ++l) {
        float* o = s_.o + (at + i) * d_ + c + 32 * l;
        const __m512 in_order[] = {_mm512_permutex2var_ps(even[i][l], first, odd[i][l]),
                                   _mm512_permutex2var_ps(even[i][l], second, odd[i][l])};
        for (int h = 0; h < 2; ++h)
          _mm512_storeu_ps(o + 16 * h,
                           _mm512_fmadd_ps(_mm512_loadu_ps(o + 16 * h), factor, in_order[h]));
      }
    }
  }

  __attribute__((always_inline)) void output_tiles(int32_t head, const KeyTile& tile,
                                                   Fetch& fetch) {
    alignas(64) float sums[2][kFewRows * 16];
    auto* v = reinterpret_cast<bf16*>(s_.v);
    const int64_t offset = block_.v_offset_bytes + int64_t{head} * d_ * 2;
    for (int32_t w = 0; w < kTile / 2; ++w) {
      fetch.values(int64_t{d_} * 4);
      Rows<PairDot, bf16>::pack_values(tile.rows, w, offset, d_, d_, v + int64_t{w} * d_ * 2);
    }
    const int64_t at = int64_t{head} * m_;
    const float* p = s_.scores + at * kTile;
    tile_fence();
    for (int32_t c = 0; c < d_; c += 32) {
      // A tile's sum begins at zero: rounding errors grow with 64 + tiles, not with the keys.
      _tile_zero(3);
      _tile_zero(4);
      for (int32_t half = 0; half < 2; ++half) {  // words of 32 keys
        const bf16* const b = v + (int64_t{16} * half * d_ + c) * 2;
        _tile_loadd(2, p + 16 * half, kTile * 4);
        _tile_loadd(6, b, d_ * 4);
        _tile_dpbf16ps(3, 2, 6);
        _tile_loadd(7, b + 32, d_ * 4);
        _tile_dpbf16ps(4, 2, 7);
      }
      _tile_stored(3, sums[0], 64);
      _tile_stored(4, sums[1], 64);
      tile_fence();
      for (int32_t r = 0; r < m_; ++r) {
        const Vec factor = set1(s_.rows.correction[at + r]);
        float* o = s_.o + (at + r) * d_ + c;
        for (int h = 0; h < 2; ++h)
          store(o + 16 * h, fma(load(o + 16 * h), factor, load(sums[h] + 16 * r)));
      }
      tile_fence();
    }
  }

  const AttendBlock& block_;
  const Scratch& s_;
  const int32_t m_, d_, tiles_, heads_at_once_;
  alignas(64) float q_[kMostTiles * 256];
  alignas(64) std::byte keys_[16 * kMostTiles * 64];
};

}  // namespace annulus::kernels::ANNULUS_ISA

#endif
