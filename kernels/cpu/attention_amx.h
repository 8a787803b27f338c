// SPDX-License-Identifier: Apache-2.0
// Many-row attention of bf16 with AMX. Products are transposed, S^T = K q^T and o^T += V^T P^T, so
// that a lane of a vector is a row of q: maxima and sums over keys need no steps between lanes. A
// panel is 16 rows; two at a time share what tiles load of K and V. Tiles and vectors take turns:
// where both are under way, vectors issue half as fast (measured on Emerald Rapids), and a store of
// a tile holds up products as long as one takes.
// Numerics  a tile of o takes in 32 keys at a time, whose sum begins at zero, as do those of P over
//           a tile of keys. P rounds to the nearest bf16, ties up, and is at most 1: where one key
//           outweighs all others, it is exact.
// Included by attention_impl.cc only, which has the rest.
#pragma once

#include "kernels/cpu/attention_rows.h"

#if defined(ANNULUS_HAS_AMX)

namespace annulus::kernels::ANNULUS_ISA {
namespace {

// 2^x, at -inf 0.
ANNULUS_INLINE Vec exp2(Vec x) {
  const __m512 r = _mm512_reduce_ps(x.v, 9);   // x - floor(x)
  __m512 p = _mm512_set1_ps(0x1.e974f6p-10f);  // 2^r, off by 2e-7 of itself
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.277856p-7f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.c91ce6p-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ebdb56p-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62e4bap-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return {_mm512_scalef_ps(p, x.v)};
}

class AmxBlock {
 public:
  static constexpr int32_t kBlockRows = 384;

  AmxBlock(const AttendBlock& block, std::byte* scratch)
      : block_(block),
        m_(block.rows * block.group),
        panels_((m_ + kAmxRows - 1) / kAmxRows),
        steps_((block.head_dim + kAmxInputs - 1) / kAmxInputs),
        columns_(2 * steps_),
        factor_(set1(block.scale * 1.44269504f)) {
    layout(scratch);
  }

  // Bytes that a block of m rows needs.
  static int64_t bytes(int32_t m, int32_t head_dim) {
    AttendBlock block;
    block.rows = m;
    block.group = 1;
    block.head_dim = head_dim;
    alignas(64) std::byte nowhere[1];
    return AmxBlock(block, nowhere).bytes_;
  }

  void attend() {
    for (int32_t panel = 0; panel < panels_; ++panel) begin_panel(panel);
    int32_t highest = INT32_MIN;
    for (int32_t i = 0; i < panels_; ++i)
      highest = state(i).highest > highest ? state(i).highest : highest;
    _tile_loadconfig(&kWholeTiles);
    const Release release;
    KeyTile tiles[2];  // this one and the next
    int64_t work = 0;
    locate(block_, block_.first_key, tiles[0]);
    for (int32_t first = block_.first_key, i = 0; first < block_.last_key; first += kTile, ++i) {
      if (work >= kPollWork && block_.poll != nullptr) {
        work = 0;
        block_.poll(block_.poll_context);
      }
      work += kTile;  // of what nobody sees, too
      const KeyTile &tile = tiles[i % 2], &next = tiles[1 - i % 2];
      locate(block_, first + kTile, tiles[1 - i % 2]);
      if (tile.lowest > highest) continue;
      pack(tile);
      take_in(tile, next.lowest > highest ? nullptr : &next);
      work += (panels_ * kAmxRows + kRowsOfPacking) * kTile;
    }
    for (int32_t panel = 0; panel < panels_; ++panel) end_panel(panel);
  }

 private:
  static constexpr int64_t kTileBytes = 1024;
  static constexpr int64_t kRowsOfPacking = 64;  // that cost as much as packing a tile of keys
  static constexpr TileConfig kWholeTiles = tile_config(kAmxRows);
  static constexpr int32_t kGroups = kTile / kAmxRows, kHalves = kTile / kAmxInputs;

  struct Release {
    Release() = default;
    ~Release() { _tile_release(); }  // also where a poll throws
    Release(const Release&) = delete;
    Release& operator=(const Release&) = delete;
  };
  struct alignas(64) Panel {  // by row
    float highest_score[16];  // so far, raw
    float sum[16];            // of P
    int32_t position[16];
    int32_t lowest, highest;  // of them
  };
  Panel& state(int32_t panel) { return state_[panel]; }
  std::byte* q(int32_t panel) { return q_ + int64_t{panel} * steps_ * kTileBytes; }
  float* o(int32_t panel) { return o_ + int64_t{panel} * columns_ * 256; }

  void layout(std::byte* base) {
    bytes_ = 0;
    const auto take = [&](int64_t bytes) {
      std::byte* p = base + bytes_;
      bytes_ += (bytes + 63) / 64 * 64;
      return p;
    };
    q_ = take(panels_ * steps_ * kTileBytes);
    k_ = take(kTile * steps_ * int64_t{64});
    v_ = take(columns_ * kHalves * kTileBytes);
    o_ = reinterpret_cast<float*>(take(panels_ * columns_ * kTileBytes));
    scores_ = reinterpret_cast<float*>(take(2 * kTile * 64));
    state_ = reinterpret_cast<Panel*>(take(panels_ * int64_t{sizeof(Panel)}));
  }

  // q as tiles of B, o and the state of the rows as nothing seen.
  void begin_panel(int32_t panel) {
    Panel& at = state(panel);
    const int32_t words = block_.head_dim / 2;
    at.lowest = INT32_MAX;
    at.highest = INT32_MIN;
    const bf16* rows[16];
    for (int32_t i = 0; i < 16; ++i) {
      const int32_t m = panel * kAmxRows + i;
      rows[i] = nullptr;
      int32_t position = INT32_MIN;
      if (m < m_) {
        rows[i] = query_of<bf16>(block_, m);
        position = position_of(block_, m);
        at.lowest = position < at.lowest ? position : at.lowest;
        at.highest = position > at.highest ? position : at.highest;
      }
      at.position[i] = position;
      at.highest_score[i] = kMinusInfinity;
      at.sum[i] = 0;
    }
    for (int32_t step = 0; step < steps_; ++step) {
      Vec in[16];
      for (int i = 0; i < 16; ++i)
        in[i] = rows[i] != nullptr
                    ? Rows<PairDot, bf16>::words(rows[i] + step * kAmxInputs, words - step * 16)
                    : zero();
      transpose(in, reinterpret_cast<float*>(q(panel) + step * kTileBytes), 16);
    }
    for (int32_t i = 0; i < columns_ * 16; ++i) store(o(panel) + 16 * i, zero());
  }

  // K one row after the other, V as tiles of A: a row a column of V, 32 keys of it. Rows behind
  // head_dim hold anything, and so do those of o that come of them, which nobody reads.
  void pack(const KeyTile& tile) {
    const int32_t d = block_.head_dim;
    for (int32_t key = 0; key < kTile; ++key) {
      const auto* row = reinterpret_cast<const bf16*>(tile.rows[key] + block_.k_offset_bytes);
      auto* const to = reinterpret_cast<float*>(k_ + int64_t{key} * steps_ * 64);
      for (int32_t step = 0; step < steps_; ++step)
        store(to + step * 16,
              Rows<PairDot, bf16>::words(row + step * kAmxInputs, d / 2 - step * 16));
    }
    for (int32_t half = 0; half < kHalves; ++half) {
      const std::byte* const* const rows = tile.rows + half * kAmxInputs;
      for (int32_t c = 0; c < d; c += 8) {
        const int64_t offset = block_.v_offset_bytes + int64_t{c} * 2;
        const auto eight = [&](int32_t key) __attribute__((always_inline)) {
          return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[key] + offset));
        };
        __m512i in[8], pairs[8], fours[8];  // in: 8 columns of keys j, 8 + j, 16 + j, 24 + j
        ANNULUS_UNROLL
        for (int j = 0; j < 8; ++j) {
          in[j] = _mm512_castsi128_si512(eight(j));
          in[j] = _mm512_inserti32x4(in[j], eight(8 + j), 1);
          in[j] = _mm512_inserti32x4(in[j], eight(16 + j), 2);
          in[j] = _mm512_inserti32x4(in[j], eight(24 + j), 3);
        }
        ANNULUS_UNROLL
        for (int j = 0; j < 4; ++j) {
          pairs[j] = _mm512_unpacklo_epi16(in[2 * j], in[2 * j + 1]);  // columns 0 to 3
          pairs[4 + j] = _mm512_unpackhi_epi16(in[2 * j], in[2 * j + 1]);
        }
        ANNULUS_UNROLL
        for (int j = 0; j < 8; j += 2) {  // fours[j]: columns j and j + 1, of keys 0 to 3
          fours[j] = _mm512_unpacklo_epi32(pairs[j / 4 * 4], pairs[j / 4 * 4 + 1]);
          fours[j + 1] = _mm512_unpacklo_epi32(pairs[j / 4 * 4 + 2], pairs[j / 4 * 4 + 3]);
          if (j % 4 == 2) {
            fours[j] = _mm512_unpackhi_epi32(pairs[j / 4 * 4], pairs[j / 4 * 4 + 1]);
            fours[j + 1] = _mm512_unpackhi_epi32(pairs[j / 4 * 4 + 2], pairs[j / 4 * 4 + 3]);
          }
        }
        std::byte* const out = v_tile(c / 16, half) + c % 16 * 64;
        ANNULUS_UNROLL
        for (int j = 0; j < 8; j += 2) {
          _mm512_store_si512(out + j * 64, _mm512_unpacklo_epi64(fours[j], fours[j + 1]));
          _mm512_store_si512(out + (j + 1) * 64, _mm512_unpackhi_epi64(fours[j], fours[j + 1]));
        }
      }
    }
  }
  std::byte* v_tile(int32_t column, int32_t half) {
    return v_ + (int64_t{column} * kHalves + half) * kTileBytes;
  }

  // All panels that see something of the tile, two at a time, which share what is loaded of K and
  // V. next: fetched meanwhile; or null.
  void take_in(const KeyTile& tile, const KeyTile* next) {
    const int32_t per_panel = next != nullptr ? (kTile + panels_ - 1) / panels_ : 0;  // keys
    int32_t one = -1, fetched = 0;
    for (int32_t panel = 0; panel < panels_; ++panel) {
      for (int32_t end = fetched + per_panel; fetched < end && fetched < kTile; ++fetched)
        fetch(next->rows[fetched]);
      if (tile.lowest > state(panel).highest) continue;
      if (one < 0) {
        one = panel;
        continue;
      }
      take_in(tile, one, panel);
      one = -1;
    }
    if (one >= 0) take_in(tile, one, -1);
  }
  __attribute__((always_inline)) void fetch(const std::byte* row) {
    for (int32_t i = 0; i < block_.head_dim * 2; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(row + block_.k_offset_bytes + i), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(row + block_.v_offset_bytes + i), _MM_HINT_T0);
    }
  }
  // b: -1 where there is none.
  __attribute__((always_inline)) void take_in(const KeyTile& tile, int32_t a, int32_t b) {
    score(a, b);
    soften(a, tile, scores_);
    if (b >= 0) soften(b, tile, scores_ + kTile * 16);
    output(a, b);
  }

  // Scores of a panel become P.
  __attribute__((always_inline)) void soften(int32_t panel, const KeyTile& tile, float* scores) {
    hide(panel, tile, scores);
    const Vec highest = raise(panel, scores);
    Panel& at = state(panel);
    Vec sums[2] = {zero(), zero()};
    auto* const p = reinterpret_cast<std::byte*>(scores);
    for (int32_t group = 0; group < kGroups; ++group) {
      ANNULUS_UNROLL
      for (int32_t pair = 0; pair < 8; ++pair) {
        const float* x = scores + (group * 16 + pair * 2) * 16;
        const Vec a = exp2(mul(sub(load(x), highest), factor_));
        const Vec b = exp2(mul(sub(load(x + 16), highest), factor_));
        sums[0] = add(sums[0], a);
        sums[1] = add(sums[1], b);
        _mm512_store_si512(p + (group * 8 + pair) * 64, pair_of(a, b));
      }
    }
    store(at.sum, add(load(at.sum), add(sums[0], sums[1])));
  }
  // a and b rounded to bf16, side by side by lane.
  static __m512i pair_of(Vec a, Vec b) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i x = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a.v), half), 16);
    const __m512i y = _mm512_add_epi32(_mm512_castps_si512(b.v), half);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, x, y);
  }

  // Scores of what the panel's rows do not see become -inf.
  void hide(int32_t panel, const KeyTile& tile, float* scores) {
    const Panel& at = state(panel);
    if (tile.highest <= at.lowest) return;
    const __m512i position = _mm512_load_si512(at.position);
    for (int32_t key = 0; key < kTile; ++key) {
      const __mmask16 seen =
          _mm512_cmple_epi32_mask(_mm512_set1_epi32(tile.positions[key]), position);
      store(scores + 16 * key,
            {_mm512_mask_mov_ps(_mm512_set1_ps(kMinusInfinity), seen, load(scores + 16 * key).v)});
    }
  }

  // Takes the rows' highest scores, and scales o and sum where they rise. Returns them; 0 where a
  // row has seen nothing yet, so that P is 0 and no NaN.
  Vec raise(int32_t panel, const float* scores) {
    Panel& at = state(panel);
    Vec top[4];
    ANNULUS_UNROLL
    for (int i = 0; i < 4; ++i) top[i] = load(scores + 16 * i);
    ANNULUS_UNROLL
    for (int key = 4; key < kTile; key += 4) {
      ANNULUS_UNROLL
      for (int i = 0; i < 4; ++i) top[i] = max(top[i], load(scores + 16 * (key + i)));
    }
    const Vec before = load(at.highest_score);
    const Vec now = max(before, max(max(top[0], top[1]), max(top[2], top[3])));
    if (_mm512_cmp_ps_mask(now.v, before.v, _CMP_GT_OQ) != 0) {
      store(at.highest_score, now);
      // Of rows whose maximum stays, exactly 1; of those that see their first key, 0.
      const Vec correction = {_mm512_mask_mov_ps(exp2(mul(sub(before, now), factor_)).v,
                                                 _mm512_cmp_ps_mask(now.v, before.v, _CMP_EQ_OQ),
                                                 _mm512_set1_ps(1))};
      store(at.sum, mul(load(at.sum), correction));
      float* const out = o(panel);
      for (int32_t i = 0; i < columns_ * 16; ++i)
        store(out + 16 * i, mul(load(out + 16 * i), correction));
    }
    return {_mm512_maskz_mov_ps(
        _mm512_cmp_ps_mask(now.v, _mm512_set1_ps(kMinusInfinity), _CMP_NEQ_UQ), now.v)};
  }

  // scores = K q^T of both panels. Four sums at a time: a product waits 52 cycles for its sum, and
  // one begins every 16.
  __attribute__((always_inline)) void score(int32_t a, int32_t b) {
    const bool both = b >= 0;
    const std::byte *const q_a = q(a), *const q_b = q(both ? b : a);
    const int64_t stride = steps_ * int64_t{64};
    tile_fence();
    for (int32_t group = 0; group < kGroups; group += 2) {
      const std::byte* const k = k_ + group * kAmxRows * stride;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int32_t step = 0; step < steps_; ++step) {
        _tile_loadd(6, k + step * 64, stride);
        _tile_loadd(4, q_a + step * kTileBytes, 64);
        _tile_dpbf16ps(0, 6, 4);
        _tile_loadd(7, k + kAmxRows * stride + step * 64, stride);
        _tile_dpbf16ps(2, 7, 4);
        if (!both) continue;
        _tile_loadd(5, q_b + step * kTileBytes, 64);
        _tile_dpbf16ps(1, 6, 5);
        _tile_dpbf16ps(3, 7, 5);
      }
      float* const scores = scores_ + group * 256;
      _tile_stored(0, scores, 64);
      _tile_stored(2, scores + 256, 64);
      if (!both) continue;
      _tile_stored(1, scores + kTile * 16, 64);
      _tile_stored(3, scores + kTile * 16 + 256, 64);
    }
    tile_fence();
  }
  // o += V^T P^T of both panels, 32 columns at a time.
  __attribute__((always_inline)) void output(int32_t a, int32_t b) {
    const bool both = b >= 0;
    float *o_a = o(a), *o_b = o(both ? b : a);
    tile_fence();
    for (int32_t c = 0; c < columns_; c += 2, o_a += 512, o_b += 512) {
      _tile_loadd(0, o_a, 64);
      _tile_loadd(2, o_a + 256, 64);
      if (both) {
        _tile_loadd(1, o_b, 64);
        _tile_loadd(3, o_b + 256, 64);
      }
      for (int32_t half = 0; half < kHalves; ++half) {
        const float* const p = scores_ + half * 256;
        _tile_loadd(6, v_tile(c, half), 64);
        _tile_loadd(4, p, 64);
        _tile_dpbf16ps(0, 6, 4);
        _tile_loadd(7, v_tile(c + 1, half), 64);
        _tile_dpbf16ps(2, 7, 4);
        if (!both) continue;
        _tile_loadd(5, p + kTile * 16, 64);
        _tile_dpbf16ps(1, 6, 5);
        _tile_dpbf16ps(3, 7, 5);
      }
      _tile_stored(0, o_a, 64);
      _tile_stored(2, o_a + 256, 64);
      if (!both) continue;
      _tile_stored(1, o_b, 64);
      _tile_stored(3, o_b + 256, 64);
    }
    tile_fence();
  }

  void end_panel(int32_t panel) {
    const Panel& at = state(panel);
    alignas(64) float rows[16 * 256];
    for (int32_t c = 0; c < columns_; ++c) {
      Vec in[16];
      ANNULUS_UNROLL
      for (int i = 0; i < 16; ++i) in[i] = load(o(panel) + int64_t{c} * 256 + 16 * i);
      transpose(in, rows + 16 * c, 256);
    }
    for (int32_t i = 0; i < kAmxRows && panel * kAmxRows + i < m_; ++i)
      finish_row(block_, panel * kAmxRows + i, at.highest_score[i], at.sum[i], rows + 256 * i);
  }

  const AttendBlock& block_;
  const int32_t m_, panels_, steps_, columns_;
  const Vec factor_;
  int64_t bytes_ = 0;
  std::byte *q_ = nullptr, *k_ = nullptr, *v_ = nullptr;
  float* o_ = nullptr;       // [columns / 16][16 columns][16 rows] of each panel
  float* scores_ = nullptr;  // [64 keys][16 rows] of two panels; P in their place as tiles of B
  Panel* state_ = nullptr;
};

}  // namespace
}  // namespace annulus::kernels::ANNULUS_ISA

#endif
