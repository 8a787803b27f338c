// SPDX-License-Identifier: Apache-2.0
// Exact attention over pieces of a key-value cache, with partial results that merge in any order.
//
// Partial = (o, lse) per row and query head, fp32: o is the normalised output over the keys seen so
// far, lse the natural logarithm of the sum of their exp(scale * q.k). Empty = (0, -inf). merge is
// a commutative monoid with empty as identity: merge(empty, empty) = empty, never NaN (arXiv
// 2411.01783, Appendix B, Eq. 4). Visibility, stated once: a key is visible to a query iff both are
// of the same segment (sequence) and key_pos <= query_pos. Padding: key_pos INT32_MAX, query_pos
// INT32_MIN. Nothing assumes that positions are sorted or that cached keys are older than fresh
// ones; tiles wholly visible or wholly hidden are found from the positions' minima and maxima.
// Layout of one KV row (one token, one layer): [2 (K, V)][kv_heads][head_dim], contiguous; a page
// is page_tokens rows; a ring payload is packed rows without a page table. KvFormat is the only
// source of byte counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels/core/tensor.h"

namespace annulus::kernels {

inline constexpr int32_t kPaddingKeyPos = std::numeric_limits<int32_t>::max();
inline constexpr int32_t kPaddingQueryPos = std::numeric_limits<int32_t>::min();

struct KvFormat {
  DType dtype = DType::kBF16;
  int32_t kv_heads = 0, head_dim = 0, page_tokens = 64;

  constexpr int64_t row_elements() const { return int64_t{2} * kv_heads * head_dim; }
  constexpr int64_t row_bytes() const { return row_elements() * size_bytes(dtype); }
  constexpr int64_t page_bytes() const { return row_bytes() * page_tokens; }
};

// KV rows of one sequence in storage order: row r lies at base + pages[r / page_tokens] *
// page_bytes + (r % page_tokens) * row_bytes, or, where pages is null (packed), at base + r *
// row_bytes.
struct KvRows {
  const std::byte* base = nullptr;
  const int32_t* pages = nullptr;
  const int32_t* positions = nullptr;  // [count] global positions
  int32_t count = 0;
};

// One sequence in a call: query rows [q_first, q_first + q_count) of the call's q and acc against
// kv.
struct Segment {
  int32_t q_first = 0, q_count = 0;
  const int32_t* q_positions = nullptr;  // [q_count]
  KvRows kv;
};

struct Partial {
  float* o = nullptr;    // [rows, heads, head_dim]
  float* lse = nullptr;  // [rows, heads]
  int64_t rows = 0;
  int32_t heads = 0, head_dim = 0;

  Partial slice(int64_t first, int64_t count) const {
    return {o + first * heads * head_dim, lse + first * heads, count, heads, head_dim};
  }
  int64_t o_elements() const { return rows * heads * head_dim; }
  int64_t elements() const { return rows * heads * (head_dim + 1); }
};

// acc = empty.
template <class Queue>
void clear(Queue& queue, Partial acc);

// acc = merge(acc, attention of q over the visible keys of each segment). q [rows, heads *
// head_dim] in the dtype of the cache; heads is a multiple of kv_heads (query head h reads KV head
// h / (heads / kv_heads)). Products of bf16 accumulate in fp32; with an f32 cache all is fp32.
// Segments may share no query row. While it computes, a CPU queue calls its poll hook at least
// every 100 us, so that transfers progress.
template <class Queue>
void attend(Queue& queue, ConstTensor q, std::span<const Segment> segments, const KvFormat& format,
            float scale, Partial acc);

// into = merge(into, from); equal shapes.
template <class Queue>
void merge(Queue& queue, Partial into, Partial from);

// Writes k, v [rows, kv_heads * head_dim] f32 as KV rows in format.dtype: row r to base +
// slot_rows[r] * row_bytes, where slot_rows[r] = page * page_tokens + offset.
template <class Queue>
void kv_append(Queue& queue, ConstTensor k, ConstTensor v, std::byte* base,
               std::span<const int64_t> slot_rows, const KvFormat& format);

// Packs the rows of every KvRows one after the other into out (contiguous, sum of counts *
// row_bytes).
template <class Queue>
void kv_pack(Queue& queue, std::byte* out, std::span<const KvRows> rows, const KvFormat& format);

}  // namespace annulus::kernels
