// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share on the device. Those on tensor cores: which rows and tiles of
// keys a block has (attention_work.h), and what becomes of a row when its keys have been seen.
#pragma once

#include "kernels/cuda/attention.h"

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention_work.h"
#include "kernels/cuda/device.cuh"

namespace annulus::kernels {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <class T>
__device__ const T* row_of(const KvRows& kv, const KvFormat& format, int32_t r) {
  const int64_t at =
      kv.pages == nullptr
          ? int64_t{r}
          : int64_t{kv.pages[r / format.page_tokens]} * format.page_tokens + r % format.page_tokens;
  return reinterpret_cast<const T*>(kv.base) + at * format.row_elements();
}

// What part `lse` of a sum is, in units of exp(top); 0 of nothing, where both may be -inf.
__device__ inline float part_of(float lse, float top) {
  return lse == -INFINITY ? 0 : expf(lse - top);
}

// The last of `count` whose first, by `first_of`, is not behind `at`.
template <class First>
__device__ int find_work(const Work* work, int count, int at, First first_of) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_of(work[middle]) <= at ? low : high) = middle;
  }
  return low;
}

// The rows of a block: [first_row, first_row + S::kRows) of `rows` of one KV head's product.
struct BlockRows {
  Work work;
  int32_t number;  // of the work
  int32_t split, first_row, rows, group, kv_head;
  __device__ bool idle() const { return split >= work.splits; }  // behind the last work
  __device__ int32_t head_of(int m) const { return kv_head * group + m % group; }
  __device__ int32_t query_of(int m) const { return m / group; }
};
template <class S>
__device__ BlockRows rows_of_block(const Work* work, int count, const KvFormat& format,
                                   const Partial& acc) {
  BlockRows out;
  const int block = static_cast<int>(blockIdx.x);
  out.number = find_work(work, count, block, [](const Work& w) { return w.first_block; });
  out.work = work[out.number];
  const int at = block - out.work.first_block;
  out.split = at / out.work.row_tiles;
  // The last rows first: where queries are causal they see the most.
  out.first_row = (out.work.row_tiles - 1 - at % out.work.row_tiles) * S::kRows;
  out.group = acc.heads / format.kv_heads;
  out.rows = out.work.segment.q_count * out.group;
  out.kv_head = static_cast<int>(blockIdx.y);
  return out;
}

// The tiles of S::kKeys keys of a block's split that some row may see; all lanes of a warp alike.
template <class S>
struct KeyTiles {
  const Bounds* bounds;  // of the segment
  int32_t pairs, keys, begin, end;
  static constexpr int kPairs = S::kKeys / kBoundKeys;  // of a tile

  __device__ KeyTiles(const BlockRows& rows, const Bounds* all)
      : bounds(all + rows.work.first_bound), keys(rows.work.segment.kv.count) {
    pairs = (keys + kBoundKeys - 1) / kBoundKeys;
    const int tiles = (keys + S::kKeys - 1) / S::kKeys;
    const int per_split = (tiles + rows.work.splits - 1) / rows.work.splits;
    begin = rows.split * per_split;
    end = min(tiles, begin + per_split);
  }
  // The first tile from `tile` on that rows up to position `latest` see a key of; `end`: none.
  __device__ int seen_from(int tile, int32_t latest) const {
    const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
    for (; tile < end; tile += device::kWarp) {
      int found = end;  // of the 32 tiles from here on, each lane one
      if (tile + lane < end) {
        for (int p = (tile + lane) * kPairs; p < min(pairs, (tile + lane + 1) * kPairs); ++p) {
          if (bounds[p].least <= latest) found = tile + lane;
        }
      }
      found = device::warp_min(found);
      if (found < end) return found;
    }
    return end;
  }
  // The largest position of a tile's keys.
  __device__ int32_t most(int tile) const {
    int32_t most = kPaddingQueryPos;
    for (int p = tile * kPairs; p < min(pairs, (tile + 1) * kPairs); ++p) {
      most = max(most, bounds[p].most);
    }
    return most;
  }
  // Whether the tile ends behind the last key.
  __device__ bool cut(int tile) const { return (tile + 1) * S::kKeys > keys; }
};

// merge(what the row holds, what has been seen) of row m, whose columns four lanes on end hold, as
// products lie in registers; all lanes of the warp call it. top: of the scores to base 2; sum: of
// this lane's columns, in units of 2^top; pair(n): this lane's columns of P V, 8 n + 2 (lane % 4)
// and the next. Goes to acc or, of several splits, to the split's own result, which the first call
// begins.
template <int kD, class Pair>
__device__ __forceinline__ void merge_row(const BlockRows& my, int m, bool first, float top,
                                          float sum, Partial acc, Results results,
                                          const Pair& pair) {
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  const bool split = my.work.splits > 1, begins = first && split;
  const bool leads = m < my.rows && lane % 4 == 0;
  int64_t at = int64_t{my.work.segment.q_first + my.query_of(m)} * acc.heads + my.head_of(m);
  if (split) {
    at = my.work.first_cell +
         (int64_t{my.split} * my.work.segment.q_count + my.query_of(m)) * acc.heads + my.head_of(m);
  }
  float* const lse = (split ? results.lse : acc.lse) + at;
  float total = sum, before = -INFINITY;
  if (leads && !begins) before = *lse;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    total += __shfl_xor_sync(device::kAllLanes, total, step);
    before = fmaxf(before, __shfl_xor_sync(device::kAllLanes, before, step));
  }
  if (m >= my.rows) return;
  const bool nothing = top == -INFINITY;
  if (nothing && !begins) return;  // it stays as it is
  const float seen = nothing ? -INFINITY : top * kLn2 + logf(total);
  const float all = fmaxf(before, seen);
  const float part_before = part_of(before, all), part_seen = part_of(seen, all);
  const float parts = part_before + part_seen;
  const float carried = nothing ? 0 : part_before / parts;
  const float fresh = nothing ? 0 : part_seen / parts / total;
  if (leads) *lse = nothing ? -INFINITY : all + logf(parts);
  float* const out = (split ? results.o : acc.o) + at * kD;
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    float2* const to = reinterpret_cast<float2*>(out + 8 * n + lane % 4 * 2);
    const float2 sums = pair(n);
    float2 x = {fresh * sums.x, fresh * sums.y};
    if (carried != 0) {
      x.x += carried * to->x;
      x.y += carried * to->y;
    }
    *to = x;
  }
}

}  // namespace annulus::kernels
