// SPDX-License-Identifier: Apache-2.0
// Computes  o = sum_k p_k v_k / sum_k p_k, lse = ln sum_k exp(scale q.k), p_k = exp(scale q.k -
//           running maximum), over the visible keys of a block; merged into (o, lse).
// Tensors   q, K, V in the dtype of the cache, where they lie; scores, sums and o in fp32.
// Mapping   one block per call and thread. M = query rows x heads of the group.
// Tiles     64 keys. Tiled: K transposed to [words][64] and V to [words][columns], shared by the
//           panels of 6 rows (attention_panels.h). Few rows: K and V read in place, scores of all
//           KV heads in the order of addresses, 16 keys at a time. bf16 with AMX: attention_amx.h
//           and, few rows, attention_few_amx.h.
// Numerics  products of bf16 accumulate in fp32 (vdpbf16ps: P rounds to bf16; without it K, V and q
//           widen to fp32 and P stays). Sums of P are fp32, unrounded. A row's maximum starts at
//           -inf; while it is, nothing visible was seen and the shift is 0, so exp gives 0, no NaN.
//           K and V of padding are never read: they may be uninitialised. V of a key that a row
//           does not see must be finite: 0 times it is added where others see it.
// Limits    head_dim % 8 == 0 (few: % 32), checked by attention.cc.
#include "kernels/cpu/attention_amx.h"
#include "kernels/cpu/attention_fetch.h"
#include "kernels/cpu/attention_few_amx.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/attention_tiles.h"

namespace annulus::kernels::ANNULUS_ISA {
namespace {

template <class Dot, class E>
void attend_tiled(const AttendBlock& block, std::byte* scratch) {
  using Element = typename Dot::Element;
  using Panels = VectorPanels<Dot>;
  constexpr int32_t kRows = Panels::kRows, kPanels = Panels::kAtOnce;
  static_assert(kRows * kPanels <= kGroupRows, "scores have room for a group");
  Scratch s;
  const int32_t m = block.rows * block.group, d = block.head_dim;
  layout(m, d, scratch, s);
  const int32_t real_words = d / Dot::kPerWord, words = round_up(real_words, 16);
  const int32_t columns = round_up(d, 16), panels = (m + kRows - 1) / kRows;
  begin<Dot, E>(block, s, words);
  auto* q = reinterpret_cast<Element*>(s.q);
  auto* k = reinterpret_cast<Element*>(s.k);
  auto* v = reinterpret_cast<Element*>(s.v);
  const Bounds all = bounds(s.rows.position, 0, m);

  KeyTile tile;
  int64_t work = 0;
  for (int32_t first = block.first_key; first < block.last_key; first += kTile) {
    if (work >= kPollWork && block.poll != nullptr) {
      work = 0;
      block.poll(block.poll_context);
    }
    work += kTile;  // of what nobody sees, too
    locate(block, first, tile);
    if (tile.lowest > all.highest) continue;
    for (int key = 0; key < kTile; key += 16) {
      for (int32_t w = 0; w < words; w += 16) {
        Vec in[16];
        ANNULUS_UNROLL
        for (int j = 0; j < 16; ++j)
          in[j] = Rows<Dot, E>::words(
              reinterpret_cast<const E*>(tile.rows[key + j] + block.k_offset_bytes) +
                  w * Dot::kPerWord,
              real_words - w);
        transpose(in, reinterpret_cast<float*>(s.k) + int64_t{w} * kTile + key, kTile);
      }
    }
    for (int32_t w = 0; w < kTile / Dot::kPerWord; ++w)
      Rows<Dot, E>::pack_values(tile.rows, w, block.v_offset_bytes, d, columns,
                                v + int64_t{w} * columns * Dot::kPerWord);

    // Groups of panels, so that K, then V, stay in the first cache.
    for (int32_t group = 0; group < panels; group += kPanels) {
      const int32_t end = group + kPanels < panels ? group + kPanels : panels;
      bool hidden[kPanels];
      for (int32_t panel = group; panel < end; ++panel) {
        const int32_t row = panel * kRows, last = row + kRows < m ? row + kRows : m;
        const Bounds seen = bounds(s.rows.position, row, last);
        float* scores = s.scores + (panel - group) * kRows * kTile;
        hidden[panel - group] = tile.lowest > seen.highest;
        if (hidden[panel - group]) continue;
        Panels::score(q + int64_t{row} * words * Dot::kPerWord, words, k, scores);
        const bool masked = tile.highest > seen.lowest;
        for (int r = 0; r < kRows; ++r)
          soften<Dot>(scores + r * kTile, masked, tile, block.scale, s.rows, row + r);
      }
      for (int32_t panel = group; panel < end; ++panel) {
        if (hidden[panel - group]) continue;
        const int32_t row = panel * kRows;
        Panels::output(s.o + int64_t{row} * columns, columns, s.rows.correction + row,
                       s.scores + (panel - group) * kRows * kTile, v);
      }
    }
    work += int64_t{m} * kTile;
  }
  finish(block, s.rows, s.o, columns);
}

// K or V of one head, for some keys of a tile, where they lie.
struct KvAt {
  const std::byte* const* rows;
  int64_t offset_bytes;
  template <class E>
  __attribute__((always_inline)) const E* key(int j) const {
    return reinterpret_cast<const E*>(rows[j] + offset_bytes);
  }
};

template <int kRows>
struct RowCount {
  static constexpr int value = kRows;
};
// f(RowCount<R>, i) for runs of R rows from i on: as many of kMost as fit in m, then fewer.
template <int kMost, class F>
ANNULUS_INLINE void by_rows(int32_t m, const F& f, int32_t i = 0) {
  for (; i + kMost <= m; i += kMost) f(RowCount<kMost>{}, i);
  if constexpr (kMost > 1) by_rows<kMost - 1>(m, f, i);
}

#if defined(__AVX2__) && !defined(__AVX512F__)

ANNULUS_INLINE __m256 load_8(const float* p) {
  return _mm256_loadu_ps(p);
}
ANNULUS_INLINE __m256 load_8(const bf16* p) {
  return widen_words(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Scores of R query rows q [R, d] against 16 keys: 4 keys at a time, so that every load of K (and
// its widening) serves all rows and 4 R sums hide the latency of an FMA. fetch: null if what is
// read here was counted before.
template <class E, int R>
ANNULUS_INLINE void score_rows(const float* q, int32_t d, KvAt kv, float* scores, Fetch* fetch) {
  for (int key = 0; key < 16; key += 4) {
    if (fetch != nullptr) fetch->keys(int64_t{4} * d * int64_t{sizeof(E)});
    const E* k[4];
    for (int j = 0; j < 4; ++j) k[j] = kv.key<E>(key + j);
    __m256 acc[R][4];
    ANNULUS_UNROLL
    for (int r = 0; r < R; ++r) {
      ANNULUS_UNROLL
      for (int j = 0; j < 4; ++j) acc[r][j] = _mm256_setzero_ps();
    }
    for (int32_t c = 0; c < d; c += 8) {
      __m256 x[R];
      ANNULUS_UNROLL
      for (int r = 0; r < R; ++r) x[r] = _mm256_loadu_ps(q + int64_t{r} * d + c);
      ANNULUS_UNROLL
      for (int j = 0; j < 4; ++j) {
        const __m256 y = load_8(k[j] + c);
        ANNULUS_UNROLL
        for (int r = 0; r < R; ++r) acc[r][j] = _mm256_fmadd_ps(x[r], y, acc[r][j]);
      }
    }
    ANNULUS_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(acc[r][0], acc[r][1]),
                                         _mm256_hadd_ps(acc[r][2], acc[r][3]));
      _mm_storeu_ps(scores + r * kTile + key,
                    _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
    }
  }
}

// R rows of o [R, d] take in a tile of V, 32 columns at a time: with 3 rows, their sums, weights
// and the V vector at hand fill the registers exactly.
template <class E, int R>
ANNULUS_INLINE void output_rows(float* o, int32_t d, const float* correction, const float* scores,
                                KvAt kv, Fetch* fetch) {
  for (int32_t c = 0; c < d; c += 32) {  // head_dim % 32 == 0
    __m256 acc[R][4];
    ANNULUS_UNROLL
    for (int r = 0; r < R; ++r) {
      ANNULUS_UNROLL
      for (int j = 0; j < 4; ++j) acc[r][j] = _mm256_setzero_ps();
    }
    for (int key = 0; key < kTile; ++key) {
      if (fetch != nullptr) fetch->values(32 * int64_t{sizeof(E)});
      const E* v = kv.key<E>(key) + c;
      __m256 p[R];
      ANNULUS_UNROLL
      for (int r = 0; r < R; ++r) p[r] = _mm256_broadcast_ss(scores + r * kTile + key);
      ANNULUS_UNROLL
      for (int j = 0; j < 4; ++j) {
        const __m256 y = load_8(v + 8 * j);
        ANNULUS_UNROLL
        for (int r = 0; r < R; ++r) acc[r][j] = _mm256_fmadd_ps(p[r], y, acc[r][j]);
      }
    }
    ANNULUS_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256 factor = _mm256_set1_ps(correction[r]);
      ANNULUS_UNROLL
      for (int j = 0; j < 4; ++j) {
        float* at = o + int64_t{r} * d + c + 8 * j;
        _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_loadu_ps(at), factor, acc[r][j]));
      }
    }
  }
}

template <class Dot, class E>
ANNULUS_INLINE void score_keys(const float* q, int32_t m, int32_t d, KvAt kv, float* scores,
                               Fetch& fetch) {
  by_rows<3>(
      m, [&](auto count, int32_t i) __attribute__((always_inline)) {
        score_rows<E, decltype(count)::value>(q + int64_t{i} * d, d, kv, scores + i * kTile,
                                              i == 0 ? &fetch : nullptr);
      });
}

template <class Dot, class E>
ANNULUS_INLINE void output_tile(float* o, int32_t m, int32_t d, const float* correction,
                                const float* scores, KvAt kv, Fetch& fetch) {
  by_rows<3>(
      m, [&](auto count, int32_t i) __attribute__((always_inline)) {
        output_rows<E, decltype(count)::value>(o + int64_t{i} * d, d, correction + i,
                                               scores + i * kTile, kv, i == 0 ? &fetch : nullptr);
      });
}

#else

// Scores of R query rows q [R, words] against 16 keys: a half at a time, so that every load of K
// serves all rows and 8 R sums hide the latency of a product.
template <class Dot, class E, int R>
ANNULUS_INLINE void score_rows(const typename Dot::Element* q, int32_t words, KvAt kv,
                               float* scores) {
  Sums half[R][2];
  ANNULUS_UNROLL
  for (int h = 0; h < 2; ++h) {
    Vec acc[R][8];
    ANNULUS_UNROLL
    for (int r = 0; r < R; ++r) {
      ANNULUS_UNROLL
      for (int j = 0; j < 8; ++j) acc[r][j] = zero();
    }
    for (int32_t w = 0; w < words; w += 16) {
      typename Dot::Operand x[R];
      ANNULUS_UNROLL
      for (int r = 0; r < R; ++r)
        x[r] = Dot::load_words(q + (int64_t{r} * words + w) * Dot::kPerWord);
      ANNULUS_UNROLL
      for (int j = 0; j < 8; ++j) {
        const auto* row = kv.key<E>(8 * h + j);
        const typename Dot::Operand y = Rows<Dot, E>::operand(row + w * Dot::kPerWord);
        ANNULUS_UNROLL
        for (int r = 0; r < R; ++r) acc[r][j] = Dot::mul_add(acc[r][j], x[r], y);
      }
    }
    ANNULUS_UNROLL
    for (int r = 0; r < R; ++r) half[r][h] = sum_each(acc[r]);
  }
  ANNULUS_UNROLL
  for (int r = 0; r < R; ++r) store(scores + r * kTile, join(half[r][0], half[r][1]));
}

template <class Dot, class E>
ANNULUS_INLINE void score_keys(const typename Dot::Element* q, int32_t m, int32_t d, KvAt kv,
                               float* scores, Fetch& fetch) {
  const int32_t words = d / Dot::kPerWord;
  fetch.keys(int64_t{16} * d * int64_t{sizeof(E)});
  by_rows<3>(
      m, [&](auto count, int32_t i) __attribute__((always_inline)) {
        score_rows<Dot, E, decltype(count)::value>(q + int64_t{i} * d, words, kv,
                                                   scores + i * kTile);
      });
}

// R rows of o [R, d] take in a tile of V. fetch: null if what is read here was counted before.
template <class Dot, class E, int R>
ANNULUS_INLINE void output_rows(float* o, int32_t d, const float* correction, const float* scores,
                                KvAt kv, Fetch* fetch) {
  // Few rows take more columns at once where registers allow: more sums hide the latency.
  constexpr int kWide = kColumns > 1 ? kColumns : R <= 3 ? 2 : 1;
  constexpr int kLast = kWide > 1 ? 2 : 1;  // head_dim % 32 == 0
  constexpr int64_t kBytes = sizeof(E);
  int32_t c = 0;
  for (; c + 16 * kWide <= d; c += 16 * kWide)
    accumulate<Dot, R, kWide>(o + c, d, correction, scores,
                              RowsB<Dot, E, Fetch>{kv.rows, kv.offset_bytes + c * kBytes, fetch});
  for (; c < d; c += 16 * kLast)
    accumulate<Dot, R, kLast>(o + c, d, correction, scores,
                              RowsB<Dot, E, Fetch>{kv.rows, kv.offset_bytes + c * kBytes, fetch});
}

template <class Dot, class E>
ANNULUS_INLINE void output_tile(float* o, int32_t m, int32_t d, const float* correction,
                                const float* scores, KvAt kv, Fetch& fetch) {
  by_rows<4>(
      m, [&](auto count, int32_t i) __attribute__((always_inline)) {
        output_rows<Dot, E, decltype(count)::value>(o + int64_t{i} * d, d, correction + i,
                                                    scores + i * kTile, kv,
                                                    i == 0 ? &fetch : nullptr);
      });
}

#endif

// The products of attend_few, head by head, where K and V lie. AMX: attention_few_amx.h.
template <class Dot, class E>
class FewVectors {
 public:
  using P = Dot;
  __attribute__((always_inline)) FewVectors(const AttendBlock& block, const Scratch& s, int32_t m)
      : block_(block), s_(s), m_(m), d_(block.head_dim) {}

  // Scores of a tile of keys, all heads, in the order of addresses.
  __attribute__((always_inline)) void score(const KeyTile& tile, Fetch& fetch) const {
    for (int32_t key = 0; key < kTile; key += 16) {
      for (int32_t head = 0; head < block_.kv_heads; ++head) {
        const int64_t at = int64_t{head} * m_;
        score_keys<Dot, E>(reinterpret_cast<const typename Dot::Element*>(s_.q) + at * d_, m_, d_,
                           {tile.rows + key, block_.k_offset_bytes + head * head_bytes()},
                           s_.scores + at * kTile + key, fetch);
      }
    }
  }
  // o takes in a tile, whose scores have become P.
  __attribute__((always_inline)) void output(int32_t head, const KeyTile& tile,
                                             Fetch& fetch) const {
    const int64_t at = int64_t{head} * m_;
    output_tile<Dot, E>(s_.o + at * d_, m_, d_, s_.rows.correction + at, s_.scores + at * kTile,
                        {tile.rows, block_.v_offset_bytes + head * head_bytes()}, fetch);
  }

 private:
  __attribute__((always_inline)) int64_t head_bytes() const { return d_ * int64_t{sizeof(E)}; }

  const AttendBlock& block_;
  const Scratch& s_;
  const int32_t m_, d_;
};

template <class Dot, class E, class Few>
void attend_few(const AttendBlock& block, std::byte* scratch) {
  Scratch s;
  const int32_t m = block.rows * block.group, d = block.head_dim;
  layout(m * block.kv_heads, d, scratch, s);
  begin<Dot, E>(block, s, d / Dot::kPerWord);
  const Bounds all = bounds(s.rows.position, 0, m);
  Fetch fetch(block);
  Few few(block, s, m);

  KeyTile tile;
  const int32_t all_rows = m * block.kv_heads;
  for (int32_t first = block.first_key; first < block.last_key; first += kTile) {
    if (first != block.first_key && block.poll != nullptr) block.poll(block.poll_context);
    locate(block, first, tile);
    if (tile.lowest > all.highest) continue;
    const bool masked = tile.highest > all.lowest;
    few.score(tile, fetch);
    for (int32_t i = 0; i < all_rows; ++i) {
      fetch.row(all_rows);
      soften<typename Few::P>(s.scores + i * kTile, masked, tile, block.scale, s.rows, i);
    }
    for (int32_t head = 0; head < block.kv_heads; ++head) few.output(head, tile, fetch);
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
#if defined(ANNULUS_HAS_AMX)
    AmxBlock(block, scratch).attend();
#else
    attend_tiled<Bf16Dot, bf16>(block, scratch);
#endif
}

void attend_few_rows(const AttendBlock& block, std::byte* scratch) {
  if (block.dtype == DType::kF32) {
    attend_few<WideDot, float, FewVectors<WideDot, float>>(block, scratch);
    return;
  }
#if defined(ANNULUS_HAS_AMX)
  if (FewTiles<WideDot>::take(block)) {
    attend_few<PairDot, bf16, FewTiles<WideDot>>(block, scratch);
    return;
  }
  if (FewTiles<PairDot>::take(block)) {
    attend_few<PairDot, bf16, FewTiles<PairDot>>(block, scratch);
    return;
  }
#endif
  attend_few<Bf16Dot, bf16, FewVectors<Bf16Dot, bf16>>(block, scratch);
}

void merge(float* o, float* lse, const float* from_o, const float* from_lse, int64_t count,
           int32_t head_dim) {
  for (int64_t i = 0; i < count; ++i)
    merge_row(o + i * head_dim, lse + i, from_o + i * head_dim, 1.0f, from_lse[i], head_dim);
}

// Weights of all splits first, so that a row costs exponentials of 16 splits at a time and one
// logarithm, and each partial is read once.
void combine(float* o, float* lse, const float* from_o, const float* from_lse, int32_t splits,
             int64_t split_rows, int64_t count, int32_t head_dim) {
  alignas(64) float weights[kMaxSplits];
  alignas(64) float sums[kMaxHeadDim];
  for (int64_t i = 0; i < count; ++i) {
    float highest = kMinusInfinity;
    for (int32_t s = 0; s < splits; ++s) {
      weights[s] = from_lse[s * split_rows + i];
      if (weights[s] > highest) highest = weights[s];
    }
    if (highest == kMinusInfinity) continue;
    Vec total = zero();
    for (int32_t s = 0; s < splits; s += kLanes) {
      const int n = splits - s < kLanes ? splits - s : kLanes;
      const Vec weight = exp(sub(load_n(weights + s, n), set1(highest)));
      store_n(weights + s, weight, n);
      total = add(total, load_n(weights + s, n));  // lanes without a split hold 0
    }
    for (int32_t c = 0; c < head_dim; c += kLanes) {
      const int n = head_dim - c < kLanes ? head_dim - c : kLanes;
      Vec sum = zero();
      for (int32_t s = 0; s < splits; ++s)
        sum = fma(set1(weights[s]), load_n(from_o + (s * split_rows + i) * head_dim + c, n), sum);
      store_n(sums + c, sum, n);
    }
    const float sum = reduce_add(total);
    merge_row(o + i * head_dim, lse + i, sums, 1.0f / sum, highest + logf(sum), head_dim);
  }
}

#if defined(ANNULUS_HAS_AMX)
int64_t any_scratch_bytes(int32_t m, int32_t head_dim) {
  const int64_t vectors = scratch_bytes(m, head_dim), tiles = AmxBlock::bytes(m, head_dim);
  return vectors > tiles ? vectors : tiles;
}
constexpr int32_t kBf16BlockRows = AmxBlock::kBlockRows;
#else
constexpr auto* any_scratch_bytes = scratch_bytes;
constexpr int32_t kBf16BlockRows = kBlockRows;
#endif

}  // namespace

const AttentionKernels attention_kernels = {
    kBlockRows, kBf16BlockRows, any_scratch_bytes, attend, attend_few_rows, merge, combine};

}  // namespace annulus::kernels::ANNULUS_ISA
