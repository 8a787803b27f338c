// SPDX-License-Identifier: Apache-2.0
// Computes: bounds of the keys' positions; the join of splits: acc = merge(acc, every split).
// Tensors: positions int32, results and acc fp32; all on the device.
// Mapping: a warp a pair of bounds; a block a query row and head that was split.
// Numerics: as merge() of kernels/attention.h; every split's weight is relative to the largest.
// Limits: kMostSplits splits, head_dim up to 128; 65,535 segments a call.
#include "kernels/cuda/attention_work.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

using device::kWarp;

constexpr int kMostSplits = 512, kLeastSplitKeys = 512;

// Up to which a count is doubled at most, for its surplus costs nothing to speak of: blocks that
// find no work end at once; warps that write bounds of no keys are a quarter of what a GPU holds;
// results of 128 elements are 2 MB. What is larger is up to an eighth more.
constexpr int64_t kDoubledBlocks = 256, kDoubledPairs = 1024, kDoubledCells = 4096;

int64_t rounded(int64_t n, int64_t doubled) {
  const auto of = static_cast<uint64_t>(n);
  if (n <= doubled) return n > 0 ? static_cast<int64_t>(std::bit_ceil(of)) : 0;
  const auto step = static_cast<int64_t>(std::bit_floor(of)) / 8;
  return ceil_div(n, step) * step;
}

__global__ void __launch_bounds__(kWarp) find_bounds(const Work* work, int count, Bounds* bounds) {
  const int at = static_cast<int>(blockIdx.x);
  const Work& mine = work[find_work(work, count, at, [](const Work& w) { return w.first_bound; })];
  const int32_t key = (at - mine.first_bound) * kBoundKeys + static_cast<int>(threadIdx.x);
  const bool there = key < mine.segment.kv.count;
  const int32_t position = there ? mine.segment.kv.positions[key] : 0;
  const int32_t least = device::warp_min(there ? position : kPaddingKeyPos);
  const int32_t most = device::warp_max(there ? position : kPaddingQueryPos);
  if (threadIdx.x == 0) bounds[at] = {least, most};
}

constexpr int kGroups = 4;  // of threads that share the splits of a row

// acc = merge(acc, every split). A block a row and head: kGroups threads a column. grid: (query
// rows of the longest segment with splits, heads, segments)
__global__ void combine_splits(const Work* work, Partial acc, Results results) {
  const Work mine = work[blockIdx.z];
  const auto row = static_cast<int>(blockIdx.x);
  if (mine.splits <= 1 || row >= mine.segment.q_count) return;
  const int64_t at = int64_t{mine.segment.q_first + row} * acc.heads + blockIdx.y;
  const int64_t first = mine.first_cell + int64_t{row} * acc.heads + blockIdx.y;
  const int64_t stride = int64_t{mine.segment.q_count} * acc.heads;
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  __shared__ float parts[kMostSplits], joined[kGroups][128];
  for (int s = thread; s < mine.splits; s += threads) parts[s] = results.lse[first + s * stride];
  const float before = acc.lse[at];
  __syncthreads();
  float all = before;
  for (int s = 0; s < mine.splits; ++s) all = fmaxf(all, parts[s]);
  if (all == -INFINITY) return;
  __syncthreads();  // all have read what is written over
  for (int s = thread; s < mine.splits; s += threads) parts[s] = part_of(parts[s], all);
  __syncthreads();
  const int column = thread % acc.head_dim, group = thread / acc.head_dim;
  float x = 0, total = 0;
#pragma unroll 8
  for (int s = group; s < mine.splits; s += kGroups) {
    x += parts[s] * results.o[(first + s * stride) * acc.head_dim + column];
  }
  for (int s = 0; s < mine.splits; ++s) total += parts[s];
  joined[group][column] = x;
  __syncthreads();
  if (group > 0) return;
  const float part_before = part_of(before, all);
  total += part_before;
  float* const out = acc.o + at * acc.head_dim + column;
  x = part_before * *out;
  for (int g = 0; g < kGroups; ++g) x += joined[g][column];
  *out = x / total;
  if (column == 0) acc.lse[at] = all + logf(total);
}

}  // namespace

WorkPlan cut_work(std::span<const Segment> segments, const KvFormat& format, int32_t heads,
                  BlockSize block, int32_t splits) {
  WorkPlan plan;
  const int64_t group = heads / format.kv_heads;
  int64_t products = 0;
  for (const Segment& segment : segments) {
    if (segment.q_count == 0 || segment.kv.count == 0) continue;
    Work& w = plan.work.emplace_back();
    w.segment = segment;
    w.first_bound = static_cast<int32_t>(plan.pairs);
    plan.pairs += ceil_div(segment.kv.count, kBoundKeys);
    w.row_tiles = static_cast<int32_t>(ceil_div(segment.q_count * group, block.rows));
    products += w.row_tiles * ceil_div(segment.kv.count, block.keys);
  }
  // Tiles of keys that a block should have, for all of them to be there at once.
  const int64_t fair = std::max<int64_t>(kLeastSplitKeys / block.keys,
                                         ceil_div(products * format.kv_heads, block.at_once));
  for (Work& w : plan.work) {
    const int64_t tiles = ceil_div(w.segment.kv.count, block.keys);
    const int64_t wanted = splits > 0 ? splits : (tiles + fair / 2) / fair;
    w.splits =
        static_cast<int32_t>(std::clamp<int64_t>(wanted, 1, std::min<int64_t>(tiles, kMostSplits)));
    w.first_block = static_cast<int32_t>(plan.blocks);
    plan.blocks += int64_t{w.row_tiles} * w.splits;
    if (w.splits == 1) continue;
    w.first_cell = plan.cells;
    plan.cells += int64_t{w.splits} * w.segment.q_count * heads;
    plan.longest_split = std::max(plan.longest_split, w.segment.q_count);
  }
  return plan;
}

void round_up(WorkPlan& plan) {
  plan.blocks = rounded(plan.blocks, kDoubledBlocks);
  plan.pairs = rounded(plan.pairs, kDoubledPairs);
  plan.cells = rounded(plan.cells, kDoubledCells);
}

WorkPlan plan_work(CudaQueue& queue, std::span<const Segment> segments, const KvFormat& format,
                   Partial acc, BlockSize block, int32_t splits) {
  WorkPlan plan = cut_work(segments, format, acc.heads, block, splits);
  if (queue.repeating()) round_up(plan);  // nobody captures a prompt
  ANNULUS_CHECK(plan.work.size() <= 65535 && plan.pairs <= INT32_MAX, plan.work.size(),
                " segments");
  plan.on_device = queue.upload(std::span<const Work>(plan.work));
  Bounds* const bounds = queue.scratch<Bounds>(plan.pairs);
  plan.bounds = bounds;
  plan.results = {queue.scratch<float>(plan.cells * acc.head_dim),
                  queue.scratch<float>(plan.cells)};
  launch(queue, {blocks_for(plan.pairs, 1)}, {kWarp}, find_bounds, plan.on_device.data(),
         static_cast<int>(plan.work.size()), bounds);
  return plan;
}

void join_splits(CudaQueue& queue, const WorkPlan& plan, Partial acc) {
  launch(queue,
         {static_cast<unsigned>(plan.longest_split), static_cast<unsigned>(acc.heads),
          static_cast<unsigned>(plan.work.size())},
         {static_cast<unsigned>(kGroups * acc.head_dim)}, combine_splits, plan.on_device.data(),
         acc, plan.results);
}

}  // namespace annulus::kernels
