// SPDX-License-Identifier: Apache-2.0
// Computes  o = sum_k p_k v_k / sum_k p_k, lse = ln sum_k exp(scale q.k), p_k = exp(scale q.k -
//           running maximum), over the visible keys of a block; merged into (o, lse).
// Tensors   q, K, V in the dtype of the cache, where they lie; scores, sums and o in fp32.
// Mapping   one block per call and thread. M = query rows x heads of the group.
// Tiles     64 keys. Tiled: K transposed to [words][64] and V to [words][columns], shared by the
//           panels of 6 rows. Few rows: K and V read in place, the next tile prefetched.
// Numerics  products of bf16 accumulate in fp32 (vdpbf16ps: P rounds to bf16; without it K, V and q
//           widen to fp32 and P stays). Sums of P are fp32, unrounded. A row's maximum starts at
//           -inf; while it is, nothing visible was seen and the shift is 0, so exp gives 0, no NaN.
//           K and V of padding are never read: they may be uninitialised.
// Limits    head_dim % 8 == 0 (few: % 32), checked by attention.cc.
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_tiles.h"

extern "C" float logf(float);
extern "C" float log1pf(float);

namespace annulus::kernels::ANNULUS_ISA {
namespace {

constexpr int kPanel = 6;
constexpr float kMinusInfinity = -__builtin_inff();
#if defined(__AVX2__)
constexpr int32_t kBlockRows = 192;
#else
constexpr int32_t kBlockRows = 48;
#endif
constexpr int64_t kPollWork = kBlockRows * kTile / 2;  // rows x keys between two polls

alignas(64) const std::byte kZeroRow[256 * sizeof(float)] = {};

ANNULUS_INLINE int32_t round_up(int32_t n, int32_t to) {
  return (n + to - 1) / to * to;
}

// The keys [first, first + 64) of a block, as far as they exist: addresses of their rows (zeros in
// place of padding) and positions, with the bounds of those that are not padding.
struct KeyTile {
  const std::byte* rows[kTile];
  alignas(64) int32_t positions[kTile];
  int32_t lowest, highest;
};

void locate(const AttendBlock& block, int32_t first, KeyTile& tile) {
  int32_t n = block.last_key - first;
  n = n < 0 ? 0 : n < kTile ? n : kTile;
  int32_t page = 0, within = 0;
  if (block.pages != nullptr) {
    page = first / block.page_tokens;
    within = first % block.page_tokens;
  }
  tile.lowest = INT32_MAX;
  tile.highest = n < kTile ? INT32_MAX : INT32_MIN;
  for (int32_t i = 0; i < n; ++i) {
    int64_t row = first + i;
    if (block.pages != nullptr) {
      row = int64_t{block.pages[page]} * block.page_tokens + within;
      if (++within == block.page_tokens) {
        within = 0;
        ++page;
      }
    }
    const int32_t position = block.key_positions[first + i];
    tile.rows[i] = block.base + row * block.row_bytes;
    tile.positions[i] = position;
    if (position > tile.highest) tile.highest = position;
    if (position < tile.lowest) tile.lowest = position;
  }
  for (int32_t i = n; i < kTile; ++i) {
    tile.rows[i] = kZeroRow;
    tile.positions[i] = INT32_MAX;
  }
}

// Row addresses of K or V within their rows; padding reads zeros.
ANNULUS_INLINE void resolve(const KeyTile& tile, int64_t offset_bytes,
                            const std::byte* (&rows)[kTile]) {
  for (int i = 0; i < kTile; ++i)
    rows[i] = tile.positions[i] == INT32_MAX ? kZeroRow : tile.rows[i] + offset_bytes;
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

// c[R, 16 NV] = c * correction + P V for columns [column, column + 16 NV).
template <class Dot, int R, int NV, class B>
ANNULUS_INLINE void accumulate(float* c, int64_t c_stride, const float* correction, const float* p,
                               const B& b) {
  Vec acc[R][NV];
  ANNULUS_UNROLL
  for (int r = 0; r < R; ++r) {
    const Vec factor = set1(correction[r]);
    ANNULUS_UNROLL
    for (int n = 0; n < NV; ++n) acc[r][n] = mul(load(c + r * c_stride + 16 * n), factor);
  }
  multiply<Dot>(reinterpret_cast<const typename Dot::Element*>(p), kTile * Dot::kPerWord, b,
                kTile / Dot::kPerWord, acc);
  ANNULUS_UNROLL
  for (int r = 0; r < R; ++r) {
    ANNULUS_UNROLL
    for (int n = 0; n < NV; ++n) store(c + r * c_stride + 16 * n, acc[r][n]);
  }
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

void finish(const AttendBlock& block, const RowState& rows, const float* o, int64_t o_stride) {
  const int32_t d = block.head_dim;
  for (int32_t m = 0; m < block.rows * block.group * block.kv_heads; ++m) {
    const int64_t at = row_of(block, m) * block.out_heads + head_of(block, m);
    float* out = block.o + at * d;
    float* lse = block.lse + at;
    if (block.store) {
      *lse = kMinusInfinity;
      for (int32_t c = 0; c < d; ++c) out[c] = 0;
    }
    if (rows.max[m] == kMinusInfinity) continue;
    const float sum = reduce_add(load(rows.sum + 16 * m));
    merge_row(out, lse, o + m * o_stride, 1.0f / sum, rows.max[m] * block.scale + logf(sum), d);
  }
}

// Scratch of a block. Words are four bytes, whatever they hold.
struct Scratch {
  RowState rows;
  float* scores;  // [kGroup * kPanel][64]
  float* o;       // [m][columns]
  std::byte *q, *k, *v;
};

constexpr int32_t kGroupRows = 4 * kPanel;

ANNULUS_INLINE int64_t layout(int32_t m, int32_t head_dim, std::byte* base, Scratch& s) {
  const int64_t rows = round_up(m, kPanel), columns = round_up(head_dim, 16);
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
  s.scores = reinterpret_cast<float*>(take(kGroupRows * kTile));
  s.rows.sum = reinterpret_cast<float*>(take(rows * 16));
  s.rows.max = reinterpret_cast<float*>(take(rows));
  s.rows.correction = reinterpret_cast<float*>(take(rows));
  s.rows.position = reinterpret_cast<int32_t*>(take(rows));
  return used;
}

int64_t scratch_bytes(int32_t m, int32_t head_dim) {
  Scratch s;
  alignas(64) std::byte nowhere[1];
  return layout(m, head_dim, nowhere, s);
}

// Packs q as words [m][stride_words], zero-padded, and resets the state of the rows.
template <class Dot, class E>
ANNULUS_INLINE void begin(const AttendBlock& block, const Scratch& s, int32_t stride_words) {
  const int32_t m = block.rows * block.group * block.kv_heads;
  const int32_t words = block.head_dim / Dot::kPerWord, columns = round_up(block.head_dim, 16);
  for (int32_t i = 0; i < round_up(m, kPanel); ++i) {
    auto* out = reinterpret_cast<float*>(s.q) + int64_t{i} * stride_words;
    const auto* row =
        reinterpret_cast<const E*>(block.q + row_of(block, i) * block.q_stride_bytes) +
        int64_t{head_of(block, i)} * block.head_dim;
    for (int32_t w = 0; w < stride_words; w += 16)
      store(out + w, i < m ? Rows<Dot, E>::words(row + w * Dot::kPerWord, words - w) : zero());
    for (int32_t c = 0; c < columns; c += 16) store(s.o + int64_t{i} * columns + c, zero());
    store(s.rows.sum + 16 * i, zero());
    s.rows.max[i] = kMinusInfinity;
    s.rows.correction[i] = 1;
    // Below the padding of keys, so that no query sees it.
    const int32_t position = i < m ? block.q_positions[row_of(block, i)] : INT32_MIN;
    s.rows.position[i] = position < INT32_MAX ? position : INT32_MAX - 1;
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

template <class Dot>
ANNULUS_INLINE void score_panel(const typename Dot::Element* q, int32_t words,
                                const typename Dot::Element* k, float* scores) {
  for (int c = 0; c < kTile; c += 16 * kColumns) {
    Vec acc[kPanel][kColumns];
    ANNULUS_UNROLL
    for (int r = 0; r < kPanel; ++r) {
      ANNULUS_UNROLL
      for (int n = 0; n < kColumns; ++n) acc[r][n] = zero();
    }
    multiply<Dot>(q, words * Dot::kPerWord,
                  PackedB<Dot>{k + c * Dot::kPerWord, kTile * Dot::kPerWord}, words, acc);
    ANNULUS_UNROLL
    for (int r = 0; r < kPanel; ++r) {
      ANNULUS_UNROLL
      for (int n = 0; n < kColumns; ++n) store(scores + r * kTile + c + 16 * n, acc[r][n]);
    }
  }
}

template <class Dot>
ANNULUS_INLINE void output_panel(float* o, int32_t columns, const float* correction,
                                 const float* scores, const typename Dot::Element* v) {
  int32_t c = 0;
  const auto b = [&](int32_t column) __attribute__((always_inline)) {
    return PackedB<Dot>{v + column * Dot::kPerWord, int64_t{columns} * Dot::kPerWord};
  };
  for (; c + 16 * kColumns <= columns; c += 16 * kColumns)
    accumulate<Dot, kPanel, kColumns>(o + c, columns, correction, scores, b(c));
  if constexpr (kColumns > 1) {
    for (; c < columns; c += 16)
      accumulate<Dot, kPanel, 1>(o + c, columns, correction, scores, b(c));
  }
}

template <class Dot, class E>
void attend_tiled(const AttendBlock& block, std::byte* scratch) {
  using Element = typename Dot::Element;
  Scratch s;
  const int32_t m = block.rows * block.group, d = block.head_dim;
  layout(m, d, scratch, s);
  const int32_t real_words = d / Dot::kPerWord, words = round_up(real_words, 16);
  const int32_t columns = round_up(d, 16), panels = (m + kPanel - 1) / kPanel;
  begin<Dot, E>(block, s, words);
  auto* q = reinterpret_cast<Element*>(s.q);
  auto* k = reinterpret_cast<Element*>(s.k);
  auto* v = reinterpret_cast<Element*>(s.v);
  const Bounds all = bounds(s.rows.position, 0, m);

  KeyTile tile;
  const std::byte* rows[kTile];
  int64_t work = 0;
  for (int32_t first = block.first_key; first < block.last_key; first += kTile) {
    locate(block, first, tile);
    if (tile.lowest > all.highest) continue;
    resolve(tile, block.k_offset_bytes, rows);
    for (int key = 0; key < kTile; key += 16) {
      for (int32_t w = 0; w < words; w += 16) {
        Vec in[16];
        ANNULUS_UNROLL
        for (int j = 0; j < 16; ++j)
          in[j] = Rows<Dot, E>::words(reinterpret_cast<const E*>(rows[key + j]) + w * Dot::kPerWord,
                                      real_words - w);
        transpose(in, reinterpret_cast<float*>(s.k) + int64_t{w} * kTile + key, kTile);
      }
    }
    resolve(tile, block.v_offset_bytes, rows);
    for (int32_t w = 0; w < kTile / Dot::kPerWord; ++w)
      Rows<Dot, E>::pack_values(rows, w, 0, d, columns, v + int64_t{w} * columns * Dot::kPerWord);

    // Groups of panels, so that K, then V, stay in the first cache.
    for (int32_t group = 0; group < panels; group += kGroupRows / kPanel) {
      const int32_t end =
          group + kGroupRows / kPanel < panels ? group + kGroupRows / kPanel : panels;
      bool hidden[kGroupRows / kPanel];
      for (int32_t panel = group; panel < end; ++panel) {
        const int32_t row = panel * kPanel, last = row + kPanel < m ? row + kPanel : m;
        const Bounds seen = bounds(s.rows.position, row, last);
        float* scores = s.scores + (panel - group) * kPanel * kTile;
        hidden[panel - group] = tile.lowest > seen.highest;
        if (hidden[panel - group]) continue;
        score_panel<Dot>(q + int64_t{row} * words * Dot::kPerWord, words, k, scores);
        const bool masked = tile.highest > seen.lowest;
        for (int r = 0; r < kPanel; ++r)
          soften<Dot>(scores + r * kTile, masked, tile, block.scale, s.rows, row + r);
      }
      for (int32_t panel = group; panel < end; ++panel) {
        if (hidden[panel - group]) continue;
        const int32_t row = panel * kPanel;
        output_panel<Dot>(s.o + int64_t{row} * columns, columns, s.rows.correction + row,
                          s.scores + (panel - group) * kPanel * kTile, v);
      }
    }
    work += int64_t{m} * kTile;
    if (work >= kPollWork && block.poll != nullptr) {
      work = 0;
      block.poll(block.poll_context);
    }
  }
  finish(block, s.rows, s.o, columns);
}

// 16 scores of one query row. Meanwhile as many lines are fetched from ahead on (null: none).
template <class Dot, class E>
ANNULUS_INLINE Vec score_keys(const typename Dot::Element* q, int32_t words,
                              const std::byte* const* rows, const std::byte* ahead) {
  Vec acc[16];
  ANNULUS_UNROLL
  for (int j = 0; j < 16; ++j) acc[j] = zero();
  for (int32_t w = 0; w < words; w += 16) {
    if (ahead != nullptr) {
      ANNULUS_UNROLL
      for (int j = 0; j < 16; ++j) fetch(ahead + (w + j) * 64);
    }
    const typename Dot::Operand x = Dot::load_words(q + w * Dot::kPerWord);
    ANNULUS_UNROLL
    for (int j = 0; j < 16; ++j)
      acc[j] = Dot::mul_add(
          acc[j], x,
          Rows<Dot, E>::operand(reinterpret_cast<const E*>(rows[j]) + w * Dot::kPerWord));
  }
  return reduce_each(acc);
}

template <int N>
struct Count {
  static constexpr int kValue = N;
};

// One KV head of one tile. While it is computed, its share of the next tile is fetched, in the
// order of addresses, so that the hardware's streams join in; and a few lines at a time, because a
// burst fills the miss buffers and stalls (bench/attention: 2 x in decode from memory).
struct FewTile {
  const KeyTile& tile;
  const KeyTile* next;  // null: none
  int64_t k_offset_bytes, v_offset_bytes, row_bytes;
  int32_t head, head_dim;
  bool masked;

  // Where to fetch next when bytes of this head's share are done.
  __attribute__((always_inline)) const std::byte* ahead(int64_t done_bytes, int64_t share) const {
    if (next == nullptr) return nullptr;
    const int64_t at = head * share + done_bytes;
    return next->rows[at / row_bytes] + at % row_bytes;
  }
};

template <class Dot, class E, int R>
ANNULUS_INLINE void output_rows(const FewTile& t, const std::byte* const* rows, bool first,
                                const float* correction, const float* scores, float* o) {
  constexpr int kLast = kColumns > 1 ? 2 : 1;  // head_dim % 32 == 0
  const int32_t d = t.head_dim;
  const int64_t half = int64_t{kTile} * d * int64_t{sizeof(E)};
  const auto b = [&](int32_t c) __attribute__((always_inline)) {
    const int64_t at = c * int64_t{sizeof(E)};
    return RowsB<Dot, E>{rows, at, first ? t.ahead(half + kTile * at, 2 * half) : nullptr};
  };
  int32_t c = 0;
  for (; c + 16 * kColumns <= d; c += 16 * kColumns)
    accumulate<Dot, R, kColumns>(o + c, d, correction, scores, b(c));
  for (; c < d; c += 16 * kLast) accumulate<Dot, R, kLast>(o + c, d, correction, scores, b(c));
}

// Scores, softmax and output of rows [0, m); state and o are those of this head.
template <class Dot, class E>
ANNULUS_INLINE void few_tile(const FewTile& t, const typename Dot::Element* q, int32_t m,
                             float scale, const RowState& state, float* scores, float* o) {
  const int32_t d = t.head_dim;
  const int64_t row_bytes = d * int64_t{sizeof(E)};
  const std::byte* rows[kTile];
  resolve(t.tile, t.k_offset_bytes, rows);
  for (int key = 0; key < kTile; key += 16) {
    const std::byte* ahead = t.ahead(key * row_bytes, 2 * kTile * row_bytes);
    for (int32_t i = 0; i < m; ++i)
      store(scores + i * kTile + key, score_keys<Dot, E>(q + int64_t{i} * d, d / Dot::kPerWord,
                                                         rows + key, i == 0 ? ahead : nullptr));
  }
  for (int32_t i = 0; i < m; ++i)
    soften<Dot>(scores + i * kTile, t.masked, t.tile, scale, state, i);
  resolve(t.tile, t.v_offset_bytes, rows);
  const float* correction = state.correction;
  int32_t left = m;
  const auto step = [&](auto r) __attribute__((always_inline)) {
    constexpr int kRows = decltype(r)::kValue;
    output_rows<Dot, E, kRows>(t, rows, left == m, correction, scores, o);
    correction += kRows;
    scores += kRows * kTile;
    o += int64_t{kRows} * d;
    left -= kRows;
  };
  while (left >= 4) step(Count<4>{});
  if (left == 3) step(Count<3>{});
  if (left == 2) step(Count<2>{});
  if (left == 1) step(Count<1>{});
}

template <class Dot, class E>
void attend_few(const AttendBlock& block, std::byte* scratch) {
  Scratch s;
  const int32_t m = block.rows * block.group, d = block.head_dim;
  layout(m * block.kv_heads, d, scratch, s);
  begin<Dot, E>(block, s, d / Dot::kPerWord);
  const auto* q = reinterpret_cast<const typename Dot::Element*>(s.q);
  const Bounds all = bounds(s.rows.position, 0, m);
  const int64_t head_bytes = d * int64_t{sizeof(E)};

  KeyTile tiles[2];
  locate(block, block.first_key, tiles[0]);
  for (int32_t first = block.first_key, turn = 0; first < block.last_key;
       first += kTile, turn ^= 1) {
    const KeyTile& tile = tiles[turn];
    KeyTile& next = tiles[turn ^ 1];
    locate(block, first + kTile, next);
    if (tile.lowest > all.highest) continue;
    const bool masked = tile.highest > all.lowest;
    for (int32_t head = 0; head < block.kv_heads; ++head) {
      const int32_t at = head * m;
      const RowState state = {s.rows.max + at, s.rows.correction + at, s.rows.sum + 16 * at,
                              s.rows.position + at};
      const FewTile t = {tile,
                         first + kTile < block.last_key ? &next : nullptr,
                         block.k_offset_bytes + head * head_bytes,
                         block.v_offset_bytes + head * head_bytes,
                         block.row_bytes,
                         head,
                         d,
                         masked};
      few_tile<Dot, E>(t, q + int64_t{at} * d, m, block.scale, state, s.scores,
                       s.o + int64_t{at} * d);
    }
  }
  finish(block, s.rows, s.o, d);
}

#if defined(ANNULUS_HAS_BF16_DOT)
using Bf16Dot = PairDot;
#else
using Bf16Dot = WideDot;
#endif

void attend(const AttendBlock& block, std::byte* scratch) {
  if (block.dtype == DType::kF32)
    attend_tiled<WideDot, float>(block, scratch);
  else
    attend_tiled<Bf16Dot, bf16>(block, scratch);
}

void attend_few_rows(const AttendBlock& block, std::byte* scratch) {
  if (block.dtype == DType::kF32)
    attend_few<WideDot, float>(block, scratch);
  else
    attend_few<Bf16Dot, bf16>(block, scratch);
}

void merge(float* o, float* lse, const float* from_o, const float* from_lse, int64_t count,
           int32_t head_dim) {
  for (int64_t i = 0; i < count; ++i)
    merge_row(o + i * head_dim, lse + i, from_o + i * head_dim, 1.0f, from_lse[i], head_dim);
}

}  // namespace

const AttentionKernels attention_kernels = {kBlockRows, scratch_bytes, attend, attend_few_rows,
                                            merge};

}  // namespace annulus::kernels::ANNULUS_ISA
