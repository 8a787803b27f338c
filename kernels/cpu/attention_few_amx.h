// SPDX-License-Identifier: Apache-2.0
// Products of few-row attention in AMX tiles. Rows of K are tiles of A where they lie, 16 keys by
// 32 elements, and q, transposed once, is B: scores come by keys, and are turned. V's rows are
// paired to tiles of B; P is A. Vectors spend most of such a block on adding up lanes. Numerics as
// attention_impl.cc. Included by it only.
#pragma once

#include "kernels/cpu/attention_fetch.h"
#include "kernels/cpu/attention_rows.h"

#if defined(ANNULUS_HAS_AMX)

namespace annulus::kernels::ANNULUS_ISA {

class FewTiles {
 public:
  __attribute__((always_inline)) static bool take(const AttendBlock& block) {
    return tiles(block) * block.kv_heads <= kMostTiles;
  }

  // Tiles 0: scores [16 keys][rows], 1: K; 2, 3: P [m][32 keys]; 4: o [m][16]; 5..7: B.
  __attribute__((always_inline)) FewTiles(const AttendBlock& block, const Scratch& s, int32_t m)
      : block_(block), s_(s), m_(m), d_(block.head_dim), tiles_(tiles(block)) {
    TileConfig config = tile_config(kAmxRows);
    for (int t = 2; t <= 4; ++t) config.rows[t] = static_cast<uint8_t>(m);
    tile_fence();
    _tile_loadconfig(&config);
    for (int32_t head = 0; head < block.kv_heads; ++head) {
      for (int32_t i = 0; i < tiles_; ++i) {
        Vec in[16];
        for (int j = 0; j < 16; ++j) {
          const auto* row = reinterpret_cast<const float*>(s.q) + (int64_t{head} * m + j) * d_ / 2;
          in[j] = j < m ? load(row + i * 16) : zero();
        }
        transpose(in, q_tile(head, i), 16);
      }
    }
    tile_fence();
  }

  __attribute__((always_inline)) ~FewTiles() { _tile_release(); }  // also where a poll throws
  FewTiles(const FewTiles&) = delete;
  FewTiles& operator=(const FewTiles&) = delete;

  __attribute__((always_inline)) void score(int32_t head, int32_t key, const KeyTile& tile,
                                            Fetch& fetch) {
    alignas(64) float by_key[16 * 16];
    fetch.keys(int64_t{16} * d_ * 2);
    const std::byte* const* rows = tile.rows + key;
    const int64_t offset = block_.k_offset_bytes + int64_t{head} * d_ * 2;
    const std::byte* k = rows[0] + offset;
    int64_t stride = block_.row_bytes;
    bool together = true;  // else they lie on several pages, or are padding
    for (int j = 1; j < 16; ++j) together = together && rows[j] - rows[j - 1] == stride;
    if (!together) {
      for (int j = 0; j < 16; ++j)
        for (int32_t c = 0; c < d_; c += 32)
          _mm512_store_si512(keys_ + (j * d_ + c) * 2,
                             _mm512_loadu_si512(rows[j] + offset + c * 2));
      k = keys_;
      stride = d_ * 2;
      tile_fence();
    }
    _tile_zero(0);
    for (int32_t i = 0; i < tiles_; ++i) {
      _tile_loadd(1, k + i * 64, stride);
      _tile_loadd(5, q_tile(head, i), 64);
      _tile_dpbf16ps(0, 1, 5);
    }
    _tile_stored(0, by_key, 64);
    tile_fence();
    Vec in[16];
    ANNULUS_UNROLL
    for (int j = 0; j < 16; ++j) in[j] = load(by_key + 16 * j);
    alignas(64) float by_row[16 * 16];
    transpose(in, by_row, 16);
    float* out = s_.scores + int64_t{head} * m_ * kTile + key;
    for (int32_t r = 0; r < m_; ++r) store(out + r * kTile, load(by_row + 16 * r));
  }

  __attribute__((always_inline)) void output(int32_t head, const KeyTile& tile, Fetch& fetch) {
    alignas(64) float sums[kFewRows * 16];
    auto* v = reinterpret_cast<bf16*>(s_.v);
    const int64_t offset = block_.v_offset_bytes + int64_t{head} * d_ * 2;
    for (int32_t w = 0; w < kTile / 2; ++w) {
      fetch.values(int64_t{d_} * 4);
      Rows<PairDot, bf16>::pack_values(tile.rows, w, offset, d_, d_, v + int64_t{w} * d_ * 2);
    }
    const int64_t at = int64_t{head} * m_;
    const float* p = s_.scores + at * kTile;
    tile_fence();
    _tile_loadd(2, p, kTile * 4);
    _tile_loadd(3, p + 16, kTile * 4);  // words of keys 32..63
    for (int32_t c = 0; c < d_; c += 16) {
      // A tile's sum begins at zero: rounding errors grow with 64 + tiles, not with the keys.
      _tile_zero(4);
      _tile_loadd(6, v + c * 2, d_ * 4);
      _tile_dpbf16ps(4, 2, 6);
      _tile_loadd(7, v + (int64_t{16} * d_ + c) * 2, d_ * 4);
      _tile_dpbf16ps(4, 3, 7);
      _tile_stored(4, sums, 64);
      tile_fence();
      for (int32_t r = 0; r < m_; ++r) {
        float* o = s_.o + (at + r) * d_ + c;
        store(o, fma(load(o), set1(s_.rows.correction[at + r]), load(sums + 16 * r)));
      }
      tile_fence();
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

  const AttendBlock& block_;
  const Scratch& s_;
  const int32_t m_, d_, tiles_;
  alignas(64) float q_[kMostTiles * 256];
  alignas(64) std::byte keys_[16 * kMaxHeadDim * 2];
};

}  // namespace annulus::kernels::ANNULUS_ISA

#endif
