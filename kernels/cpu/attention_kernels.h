// SPDX-License-Identifier: Apache-2.0
// The per-ISA part of CPU attention: a table of plain functions, one table per instruction set,
// filled by attention_impl.cc and called by attention.cc. An AttendBlock is one work item: a run of
// query rows of one segment, KV heads with their groups of query heads, a run of keys. Rows and
// group together are the M dimension (m = row * group + head of the group), so that every K and V
// read serves all heads of the group. The functions allocate nothing, keep no state and run on any
// thread; scratch is per thread, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

namespace annulus::kernels {

struct AttendBlock {
  const std::byte* q = nullptr;          // first row, first head of the group
  int64_t q_stride_bytes = 0;            // from one query row to the next
  const int32_t* q_positions = nullptr;  // [rows]
  int32_t rows = 0, group = 0, head_dim = 0;
  int32_t kv_heads = 1;  // consecutive ones; more than one only for few rows
  DType dtype = DType::kF32;
  float scale = 1;  // > 0

  const std::byte* base = nullptr;         // KV rows as KvRows
  const int32_t* pages = nullptr;          // null = packed
  const int32_t* key_positions = nullptr;  // of the whole segment, indexed by key
  int32_t page_tokens = 0;
  int64_t row_bytes = 0;
  int64_t k_offset_bytes = 0, v_offset_bytes = 0;  // of the first KV head within a KV row
  int32_t first_key = 0, last_key = 0;             // [first, last) in storage order
  int32_t soon_first_key = 0, soon_last_key = 0;   // keys likely to be taken up after these

  float* o = nullptr;  // result of row r, query head h (counted from the first): o + (r * out_heads
                       // + h) * head_dim
  float* lse = nullptr;  // lse + r * out_heads + h
  int64_t out_heads = 0;
  bool store = false;  // overwrite (o, lse) instead of merging into it

  void (*poll)(void*) = nullptr;  // set on the owner thread's items; called at least every 100 us
  void* poll_context = nullptr;
};

struct AttentionKernels {
  // M of a tiled item; bounds the time between two polls.
  int32_t block_rows_f32, block_rows_bf16;
  int32_t block_rows(DType dtype) const {
    return dtype == DType::kF32 ? block_rows_f32 : block_rows_bf16;
  }
  int64_t (*scratch_bytes)(int32_t rows, int32_t head_dim);  // rows: m, times KV heads if few
  // Tiled: K and V tiles are repacked and amortised over the rows. Any head_dim % 8 == 0.
  void (*attend)(const AttendBlock&, std::byte* scratch);
  // Few rows (m <= kFewRows, head_dim % 32 == 0): K and V are read once, in place.
  void (*attend_few)(const AttendBlock&, std::byte* scratch);
  // into = merge(into, from) for count rows of o [count, head_dim], lse [count].
  void (*merge)(float* o, float* lse, const float* from_o, const float* from_lse, int64_t count,
                int32_t head_dim);
  // into = merge(into, all splits), split s of row i at from + s * split_rows + i. At most
  // kMaxSplits of them.
  void (*combine)(float* o, float* lse, const float* from_o, const float* from_lse, int32_t splits,
                  int64_t split_rows, int64_t count, int32_t head_dim);
};

inline constexpr int32_t kFewRows = 8;
inline constexpr int32_t kMaxSplits = 128;
inline constexpr int32_t kMaxHeadDim = 256;

ANNULUS_DECLARE_PER_ISA(AttentionKernels, attention_kernels)

}  // namespace annulus::kernels
