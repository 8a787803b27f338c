// SPDX-License-Identifier: Apache-2.0
// Computes: what cuDNN needs of a block: its queries in the order of their positions, its keys one
//   after the other, and for each key the first row that sees it; then acc = merge(acc, cuDNN's o
//   and lse).
// Tensors: q and KV rows bf16, in chunks of 16 bytes; o, lse and acc fp32; all on the device.
// Mapping: a thread a query, a key, a chunk that is copied; a warp a row and head that is merged.
// Numerics: copies are exact. What cuDNN leaves in a row that sees nothing is not read: which those
//   are is known from the first rows.
// Limits: head_dim a multiple of 64; q and KV rows aligned to 16 bytes.
#include "kernels/cuda/cudnn_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {

struct CudnnAttention::Block {
  Segment segment;
  ConstTensor q;                         // of the call
  int32_t first_query = 0, queries = 0;  // of the segment; rows behind them fill the block up
  int32_t rows = 0;
};

namespace {

using device::kBlock;
using device::kWarp;

constexpr int kMergeWarps = 4;
static_assert(kCudnnKeys.large % kBlock == 0 && kCudnnKeys.small % kBlock == 0 &&
                  kCudnnKeys.large / kBlock <= kWarp,
              "a lane a least row of a block's keys");

struct alignas(16) Chunk {
  static constexpr int kElements = 8;
  uint32_t words[4];
};

// order[r] = the query that is number r by position, positions[r] its position; equal ones in their
// own order.
__global__ void __launch_bounds__(kBlock)
    sort_queries(const int32_t* given, int32_t count, int32_t* order, int32_t* positions) {
  const auto mine = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (mine >= count) return;
  const int32_t position = given[mine];
  int32_t rank = 0;
  for (int32_t other = 0; other < count; ++other) {
    const int32_t theirs = given[other];
    rank += theirs < position || (theirs == position && other < mine) ? 1 : 0;
  }
  order[rank] = mine;
  positions[rank] = position;
}

struct GatherQueries {
  View<const Chunk> q;  // from the block's first query on
  const int32_t* order;
  int32_t count;
  Chunk* to;
  __device__ void operator()(int64_t r, int64_t c) const {
    to[r * q.cols + c] = r < count ? *q.at(order[r], c) : Chunk{};
  }
};

// first_rows[k]: the first of `count` rows, at these sorted positions, that sees key k; `rows`
// where none does. least[b]: the least of them among kBlock keys.
__global__ void __launch_bounds__(kBlock)
    find_first_rows(const int32_t* positions, int32_t count, int32_t rows, const int32_t* keys,
                    int32_t key_count, int32_t* first_rows, int32_t* least) {
  const auto key = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  int32_t first = count;
  if (key < key_count) {
    const int32_t position = keys[key];
    int32_t low = 0;
    while (low < first) {
      const int32_t middle = (low + first) / 2;
      if (positions[middle] < position) {
        low = middle + 1;
      } else {
        first = middle;
      }
    }
  }
  if (first == count) first = rows;
  first_rows[key] = first;
  __shared__ int32_t of_warps[kBlock / kWarp];
  const int32_t of_warp = device::warp_min(first);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (const int32_t each : of_warps) first = min(first, each);
  least[blockIdx.x] = first;
}

// A row that no query sees is zeros: padding may hold anything, and 0 times NaN is NaN.
struct GatherKeys {
  KvRows kv;
  KvFormat format;  // of chunks
  int32_t first_key, rows;
  const int32_t* first_rows;
  Chunk* to;
  __device__ void operator()(int64_t k, int64_t c) const {
    Chunk chunk = {};
    if (first_rows[k] < rows) {
      chunk = row_of<Chunk>(kv, format, first_key + static_cast<int32_t>(k))[c];
    }
    to[k * format.row_elements() + c] = chunk;
  }
};

// acc = merge(acc, o and lse), rows and heads one after the other; row r is acc's first_row +
// order[r].
__global__ void __launch_bounds__(kMergeWarps* kWarp)
    merge_block(const int32_t* order, int32_t count, const int32_t* least, int32_t leasts,
                const float* o, const float* lse, int64_t first_row, Partial acc) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t from = int64_t{blockIdx.x} * kMergeWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (from >= int64_t{count} * acc.heads) return;  // the whole warp
  const auto row = static_cast<int32_t>(from / acc.heads);
  if (row < device::warp_min(lane < leasts ? least[lane] : count)) return;  // it sees nothing
  const int64_t to = (first_row + order[row]) * acc.heads + from % acc.heads;
  const float before = acc.lse[to], seen = lse[from];
  __syncwarp();  // all have read what one will write
  const float top = fmaxf(before, seen);
  const float part_before = part_of(before, top), part_seen = part_of(seen, top);
  const float total = part_before + part_seen;
  const float carried = part_before / total, fresh = part_seen / total;
  for (int e = 2 * lane; e < acc.head_dim; e += 2 * kWarp) {
    const auto* const ours = reinterpret_cast<const float2*>(o + from * acc.head_dim + e);
    auto* const out = reinterpret_cast<float2*>(acc.o + to * acc.head_dim + e);
    *out = {carried * out->x + fresh * ours->x, carried * out->y + fresh * ours->y};
  }
  if (lane == 0) acc.lse[to] = top + logf(total);
}

SdpaShape shape_of(int32_t heads, const KvFormat& format, int64_t queries, int64_t keys) {
  return {heads, format.kv_heads,      format.head_dim, queries,
          keys,  SdpaMask::kFirstRows, DType::kF32};
}

}  // namespace

int32_t CudnnAttention::prepare(int32_t heads, const KvFormat& format) {
  if (!tensor_cores_take(format)) return 0;
  for (const int32_t queries : {kCudnnQueries.large, kCudnnQueries.small})
    for (const int32_t keys : {kCudnnKeys.large, kCudnnKeys.small})
      plan_of(shape_of(heads, format, queries, keys));
  return kCudnnQueries.large;
}

void CudnnAttention::attend(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                            const KvFormat& format, float scale, Partial acc) {
  ANNULUS_CHECK(tensor_cores_take(format), "heads of ", format.head_dim);
  ANNULUS_CHECK(reinterpret_cast<uintptr_t>(q.data) % sizeof(Chunk) == 0 &&
                    q.row_stride % Chunk::kElements == 0,
                "queries ", q.row_stride, " apart");
  for (const Segment& segment : segments) {
    if (segment.kv.count == 0) continue;
    for (int32_t first = 0; first < segment.q_count;) {
      const int32_t left = segment.q_count - first, rows = kCudnnQueries.next(left);
      const Block block = {segment, q, first, std::min(left, rows), rows};
      attend_block(queue, block, format, scale, acc);
      first += block.queries;
    }
  }
}

void CudnnAttention::attend_block(CudaQueue& queue, const Block& block, const KvFormat& format,
                                  float scale, Partial acc) {
  const CudaQueue::Mark mark(queue);
  const KvRows& kv = block.segment.kv;
  const int64_t width = block.q.cols,
                first_row = int64_t{block.segment.q_first} + block.first_query;
  const int32_t most_keys = kCudnnKeys.next(kv.count);  // of a block
  KvFormat chunks = format;
  chunks.head_dim /= Chunk::kElements;

  auto* const order = queue.scratch<int32_t>(block.rows);
  auto* const positions = queue.scratch<int32_t>(block.rows);
  auto* const q = queue.scratch<Chunk>(block.rows * width / Chunk::kElements);
  auto* const first_rows = queue.scratch<int32_t>(most_keys);
  auto* const least = queue.scratch<int32_t>(most_keys / kBlock);
  auto* const keys = queue.scratch<Chunk>(most_keys * chunks.row_elements());
  auto* const o = queue.scratch<float>(block.rows * width);
  auto* const lse = queue.scratch<float>(int64_t{block.rows} * acc.heads);

  launch(queue, {blocks_for(block.queries, kBlock)}, {kBlock}, sort_queries,
         block.segment.q_positions + block.first_query, block.queries, order, positions);
  const View<const Chunk> given = {
      reinterpret_cast<const Chunk*>(block.q.row<const bf16>(first_row)), block.queries,
      width / Chunk::kElements, block.q.row_stride / Chunk::kElements};
  for_each(queue, block.rows, given.cols, GatherQueries{given, order, block.queries, q});

  for (int32_t first = 0; first < kv.count;) {
    const int32_t left = kv.count - first, size = kCudnnKeys.next(left);
    const int32_t count = std::min(left, size);
    launch(queue, {blocks_for(size, kBlock)}, {kBlock}, find_first_rows, positions, block.queries,
           block.rows, kv.positions + first, count, first_rows, least);
    for_each(queue, size, chunks.row_elements(),
             GatherKeys{kv, chunks, first, block.rows, first_rows, keys});
    Sdpa& sdpa = plan_of(shape_of(acc.heads, format, block.rows, size));
    sdpa.attend(queue, q, keys, scale, o, lse, first_rows);
    launch(queue, {blocks_for(int64_t{block.queries} * acc.heads, kMergeWarps)},
           {kMergeWarps * kWarp}, merge_block, order, block.queries, least, size / kBlock, o, lse,
           first_row, acc);
    first += count;
  }
}

Sdpa& CudnnAttention::plan_of(const SdpaShape& shape) {
  std::unique_ptr<Sdpa>& plan = plans_[shape];
  if (!plan) plan = std::make_unique<Sdpa>(api_, shape);
  return *plan;
}

}  // namespace annulus::kernels
