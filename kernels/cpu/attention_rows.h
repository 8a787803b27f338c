// SPDX-License-Identifier: Apache-2.0
// What both attention kernels of an ISA share: where the keys of a tile lie, the online softmax of
// the rows of a block (running maximum, sums by lane, pending correction of o), their scratch, and
// the merge into the result. Included by attention_impl.cc only; it states the numerics.
#pragma once

#include "kernels/cpu/amx.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_tiles.h"

extern "C" float logf(float);
extern "C" float log1pf(float);

namespace annulus::kernels::ANNULUS_ISA {

inline constexpr float kMinusInfinity = -__builtin_inff();
#if defined(__AVX512F__)
inline constexpr int32_t kBlockRows = 192;
#elif defined(__AVX2__)
inline constexpr int32_t kBlockRows = 384;  // packing K and V costs more here
#else
inline constexpr int32_t kBlockRows = 48;
#endif
inline constexpr int64_t kPollWork = kBlockRows * kTile / 2;  // rows x keys between two polls

ANNULUS_INLINE int32_t round_up(int32_t n, int32_t to) {
  return (n + to - 1) / to * to;
}

// Rows that have room and state: panels (attention_panels.h) are whole.
ANNULUS_INLINE int32_t padded_rows(int32_t m) {
  return round_up(m, 6);
}

// The keys [first, first + 64) of a block, as far as they exist: addresses of their rows (another
// key's in place of padding: it weighs nothing) and positions, with the bounds of those that are
// not padding.
struct KeyTile {
  const std::byte* rows[kTile];
  alignas(64) int32_t positions[kTile];
  int32_t lowest, highest;
};

static void locate(const AttendBlock& block, int32_t first, KeyTile& tile) {
  int32_t n = block.last_key - first;
  n = n < 0 ? 0 : n < kTile ? n : kTile;
  if (block.pages == nullptr) {
    for (int32_t i = 0; i < n; ++i)
      tile.rows[i] = block.base + (int64_t{first} + i) * block.row_bytes;
  } else {
    int32_t page = first / block.page_tokens, within = first % block.page_tokens;
    for (int32_t i = 0; i < n; ++page, within = 0) {
      const std::byte* row =
          block.base + (int64_t{block.pages[page]} * block.page_tokens + within) * block.row_bytes;
      for (; within < block.page_tokens && i < n; ++within, ++i, row += block.row_bytes)
        tile.rows[i] = row;
    }
  }
  const int32_t* const positions = block.key_positions + first;
  int32_t lowest = INT32_MAX, highest = n < kTile ? INT32_MAX : INT32_MIN;
  for (int32_t i = 0; i < n; ++i) {
    tile.positions[i] = positions[i];
    lowest = positions[i] < lowest ? positions[i] : lowest;
    highest = positions[i] > highest ? positions[i] : highest;
  }
  tile.lowest = lowest;
  tile.highest = highest;
  for (int32_t i = n; i < kTile; ++i) tile.positions[i] = INT32_MAX;
  if (highest < INT32_MAX || lowest == INT32_MAX) return;
  const std::byte* real = nullptr;
  for (int32_t i = 0; i < n; ++i)
    if (tile.positions[i] < INT32_MAX) real = tile.rows[i];
  for (int32_t i = 0; i < kTile; ++i)
    if (tile.positions[i] == INT32_MAX) tile.rows[i] = real;
}

// State of the rows of a block, one entry per m.
struct RowState {
  float* max;         // of the raw scores
  float* correction;  // what o is to be scaled by before the next product
  float* sum;         // [m][16] sums of p by lane
  int32_t* position;
};

// Scores of one row become probabilities in place (as the words of Dot).
template <class Dot>
ANNULUS_INLINE void soften(float* scores, bool masked, const KeyTile& tile, float scale,
                           const RowState& rows, int32_t m) {
  Vec x[kTile / 16];
  ANNULUS_UNROLL
  for (int i = 0; i < kTile / 16; ++i) x[i] = load(scores + 16 * i);
  if (masked) {
    const Vec hidden = set1(kMinusInfinity);
    ANNULUS_UNROLL
    for (int i = 0; i < kTile / 16; ++i)
      x[i] = select(less_equal(tile.positions + 16 * i, rows.position[m]), x[i], hidden);
  }
  const Vec top = max(max(x[0], x[1]), max(x[2], x[3]));
  float correction = 1;
  if (any_above(top, rows.max[m])) {
    const float highest = reduce_max(top);
    correction = reduce_max(exp(set1((rows.max[m] - highest) * scale)));
    rows.max[m] = highest;
  }
  rows.correction[m] = correction;
  const float seen = rows.max[m] == kMinusInfinity ? 0.0f : rows.max[m];
  const Vec factor = set1(scale), shift = set1(-(seen * scale));
  ANNULUS_UNROLL
  for (int i = 0; i < kTile / 16; ++i) x[i] = exp(fma(x[i], factor, shift));
  const Vec sum = add(add(x[0], x[1]), add(x[2], x[3]));
  float* sums = rows.sum + 16 * m;
  store(sums, fma(load(sums), set1(correction), sum));
  auto* p = reinterpret_cast<typename Dot::Element*>(scores);
  ANNULUS_UNROLL
  for (int i = 0; i < kTile / 16; ++i) store(p + 16 * i, x[i]);
}

// (o, lse) = merge((o, lse), (factor * from, from_lse)), one row; symmetric to the bit.
ANNULUS_INLINE void merge_row(float* o, float* lse, const float* from, float factor, float from_lse,
                              int32_t d) {
  if (from_lse == kMinusInfinity) return;
  const Vec scaled = set1(factor);
  if (*lse == kMinusInfinity) {
    for (int32_t c = 0; c < d; c += 16) {
      const int n = d - c < 16 ? d - c : 16;
      store_n(o + c, mul(load_n(from + c, n), scaled), n);
    }
    *lse = from_lse;
    return;
  }
  const bool lower = *lse < from_lse;  // the one with the larger lse has weight 1
  const float high = lower ? from_lse : *lse, low = lower ? *lse : from_lse;
  const float weight = reduce_max(exp(set1(low - high)));
  const Vec w = set1(weight), inverse = set1(1.0f / (1.0f + weight));
  for (int32_t c = 0; c < d; c += 16) {
    const int n = d - c < 16 ? d - c : 16;
    const Vec a = load_n(o + c, n), b = mul(load_n(from + c, n), scaled);
    store_n(o + c, mul(lower ? fma(w, a, b) : fma(w, b, a), inverse), n);
  }
  *lse = high + log1pf(weight);
}

// Entry m of the row state: KV head by KV head, m = (kv_head * rows + row) * group + head of group.
ANNULUS_INLINE int32_t row_of(const AttendBlock& block, int32_t m) {
  return m / block.group % block.rows;
}
ANNULUS_INLINE int32_t head_of(const AttendBlock& block, int32_t m) {
  return m / (block.rows * block.group) * block.group + m % block.group;
}

// Row m of q.
template <class E>
ANNULUS_INLINE const E* query_of(const AttendBlock& block, int32_t m) {
  return reinterpret_cast<const E*>(block.q + row_of(block, m) * block.q_stride_bytes) +
         int64_t{head_of(block, m)} * block.head_dim;
}
// Its position, below the padding of keys, so that no query sees it.
ANNULUS_INLINE int32_t position_of(const AttendBlock& block, int32_t m) {
  const int32_t position = block.q_positions[row_of(block, m)];
  return position < INT32_MAX ? position : INT32_MAX - 1;
}

// Merges what row m of the block has seen: o relative to exp(scale max), with their sum.
ANNULUS_INLINE void finish_row(const AttendBlock& block, int32_t m, float max, float sum,
                               const float* o) {
  const int32_t d = block.head_dim;
  const int64_t at = row_of(block, m) * block.out_heads + head_of(block, m);
  float* out = block.o + at * d;
  float* lse = block.lse + at;
  if (block.store) {
    *lse = kMinusInfinity;
    for (int32_t c = 0; c < d; ++c) out[c] = 0;
  }
  if (max == kMinusInfinity && sum == 0) return;  // a sum that is no number is told
  merge_row(out, lse, o, 1.0f / sum, max * block.scale + logf(sum), d);
}
static void finish(const AttendBlock& block, const RowState& rows, const float* o,
                   int64_t o_stride) {
  for (int32_t m = 0; m < block.rows * block.group * block.kv_heads; ++m)
    finish_row(block, m, rows.max[m], reduce_add(load(rows.sum + 16 * m)), o + m * o_stride);
}

// Scratch of a block. Words are four bytes, whatever they hold.
struct Scratch {
  RowState rows;
  float* scores;  // [m, at least kGroupRows][64]
  float* o;       // [m][columns]
  std::byte *q, *k, *v;
};

inline constexpr int32_t kGroupRows = 24;  // whose scores are held at once

ANNULUS_INLINE int64_t layout(int32_t m, int32_t head_dim, std::byte* base, Scratch& s) {
  const int64_t rows = padded_rows(m), columns = round_up(head_dim, 16);
  int64_t used = 0;
  const auto take = [&](int64_t words) __attribute__((always_inline)) {
    std::byte* p = base + used;
    used += (words * 4 + 63) / 64 * 64;
    return p;
  };
  s.q = take(rows * columns);
  s.k = take(columns * kTile);
  s.v = take(columns * kTile);
  s.o = reinterpret_cast<float*>(take(rows * columns));
  s.scores = reinterpret_cast<float*>(take((rows > kGroupRows ? rows : kGroupRows) * kTile));
  s.rows.sum = reinterpret_cast<float*>(take(rows * 16));
  s.rows.max = reinterpret_cast<float*>(take(rows));
  s.rows.correction = reinterpret_cast<float*>(take(rows));
  s.rows.position = reinterpret_cast<int32_t*>(take(rows));
  return used;
}

static int64_t scratch_bytes(int32_t m, int32_t head_dim) {
  Scratch s;
  alignas(64) std::byte nowhere[1];
  return layout(m, head_dim, nowhere, s);
}

// Packs q as words [m][stride_words], zero-padded, and resets the state of the rows.
template <class Dot, class E>
ANNULUS_INLINE void begin(const AttendBlock& block, const Scratch& s, int32_t stride_words) {
  const int32_t m = block.rows * block.group * block.kv_heads;
  const int32_t words = block.head_dim / Dot::kPerWord, columns = round_up(block.head_dim, 16);
  for (int32_t i = 0; i < padded_rows(m); ++i) {
    auto* out = reinterpret_cast<float*>(s.q) + int64_t{i} * stride_words;
    const auto* row = query_of<E>(block, i);
    for (int32_t w = 0; w < stride_words; w += 16)
      store(out + w, i < m ? Rows<Dot, E>::words(row + w * Dot::kPerWord, words - w) : zero());
    for (int32_t c = 0; c < columns; c += 16) store(s.o + int64_t{i} * columns + c, zero());
    store(s.rows.sum + 16 * i, zero());
    s.rows.max[i] = kMinusInfinity;
    s.rows.correction[i] = 1;
    s.rows.position[i] = i < m ? position_of(block, i) : INT32_MIN;
  }
}

struct Bounds {
  int32_t lowest, highest;
};
ANNULUS_INLINE Bounds bounds(const int32_t* positions, int32_t first, int32_t last) {
  Bounds b = {INT32_MAX, INT32_MIN};
  for (int32_t i = first; i < last; ++i) {
    if (positions[i] < b.lowest) b.lowest = positions[i];
    if (positions[i] > b.highest) b.highest = positions[i];
  }
  return b;
}

}  // namespace annulus::kernels::ANNULUS_ISA
