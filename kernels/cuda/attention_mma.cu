// SPDX-License-Identifier: Apache-2.0
// Computes: what kernels/attention.h defines, for a bf16 cache and head_dim 64 or 128, on tensor
//   cores (mma.sync; FlashAttention-2, arXiv 2307.08691, algorithm 1, without its returning to O in
//   low precision: acc is carried on in fp32, so that a hop of the ring neither rounds nor merges).
// Tensors: q [rows, heads * D] and KV rows bf16, acc fp32; all on the device.
// Mapping: the query heads of a KV head are rows of one product (row m = query m / group, head m %
//   group), so that keys are read once for all of them; a block has kRows of these rows and walks
//   over the tiles of keys that one of them sees, each of its warps kRowTiles * 16 rows. Where few
//   rows meet many keys (decode) the keys are cut into splits, a block each, joined by
//   combine_splits; how many is each segment's own number.
// Tiles: K and V by cp.async into two stages of kKeys keys, swizzled rows of shared memory; where
//   the keys of the tile after the next lie is looked up meanwhile. Scores 32 keys at a time, so
//   that they, O and a piece of Q fit into 255 registers.
// Numerics: exponentials to base 2; probabilities bf16 in the second product only. The sums of P
//   and of P V begin at zero every 32 keys, are added to those of up to kFlushKeys keys, and these
//   go into acc: rounding grows with these few steps and not with keys.
// Limits: head_dim 64 and 128; 2^31 blocks. Not yet: wgmma and TMA.
#include <algorithm>
#include <vector>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_core.cuh"

namespace annulus::kernels {
namespace {

using device::kWarp;

constexpr int kStep = 32;            // keys whose scores are held at once
constexpr int kBoundKeys = 32;       // keys a pair of bounds stands for
constexpr int kFlushKeys = 1 << 14;  // keys seen between two flushes into acc
constexpr int kMostSplits = 512, kLeastSplitKeys = 512;
constexpr int kSlots = 3;  // tiles whose keys have been looked up: read, under way, next
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// A block's shape. Prefill: many rows; decode: a warp, whose splits fill the GPU.
template <int kD, int kRowTilesPerWarp, int kWarpsOfBlock, int kKeysOfTile>
struct BlockShape {
  static constexpr int kHeadDim = kD, kRowTiles = kRowTilesPerWarp, kWarps = kWarpsOfBlock,
                       kKeys = kKeysOfTile;
  static constexpr int kThreads = kWarps * kWarp, kRows = 16 * kRowTiles * kWarps;
  static constexpr int kChunks = kD / 8;  // of 16 bytes, of a row
  // Q, two stages of K and V, where the slots' keys lie and their positions, the rows' positions.
  static constexpr int kSharedBytes =
      2 * kD * (kRows + 4 * kKeys) + kSlots * kKeys * (8 + 4) + 4 * kRows;
};
template <int kD>
using PrefillShape = BlockShape<kD, 2, 4, 64>;
template <int kD>
using DecodeShape = BlockShape<kD, 1, 1, 32>;

// A segment and its share of a launch.
struct Work {
  Segment segment;
  int32_t first_bound = 0;  // of its keys in the table of bounds
  int32_t first_block = 0;  // of the grid's x: row tiles, by split
  int32_t row_tiles = 0, splits = 1;
  int64_t first_cell = 0;  // of its splits' results, [split][query][head]; if several
};
struct Bounds {
  int32_t least, most;  // positions of kBoundKeys keys
};
struct Results {  // of splits
  float* o;       // [cells, head_dim]
  float* lse;     // [cells]
};

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

// A warp a pair of bounds.
__global__ void __launch_bounds__(kWarp) find_bounds(const Work* work, int count, Bounds* bounds) {
  const int at = static_cast<int>(blockIdx.x);
  const Work& mine = work[find_work(work, count, at, [](const Work& w) { return w.first_bound; })];
  const int32_t key = (at - mine.first_bound) * kBoundKeys + static_cast<int>(threadIdx.x);
  // Keys that are not there are nobody's: they widen neither bound.
  const bool there = key < mine.segment.kv.count;
  const int32_t position = there ? mine.segment.kv.positions[key] : 0;
  const int32_t least = device::warp_min(there ? position : kPaddingKeyPos);
  const int32_t most = device::warp_max(there ? position : kPaddingQueryPos);
  if (threadIdx.x == 0) bounds[at] = {least, most};
}

// grid: (blocks of all work, KV heads)
template <class S>
__global__ void __launch_bounds__(S::kThreads)
    attend_tiles(const Work* work, int count, const Bounds* bounds, View<const bf16> q,
                 KvFormat format, float scale, Partial acc, Results results) {
  constexpr int kD = S::kHeadDim, kChunks = S::kChunks, kKeys = S::kKeys;
  const int number = static_cast<int>(blockIdx.x);
  const Work mine =
      work[find_work(work, count, number, [](const Work& w) { return w.first_block; })];
  const Segment segment = mine.segment;
  const int split = (number - mine.first_block) / mine.row_tiles;
  // The last rows first: where queries are causal they see the most.
  const int row_tile = mine.row_tiles - 1 - (number - mine.first_block) % mine.row_tiles;
  const int group = acc.heads / format.kv_heads, kv_head = static_cast<int>(blockIdx.y);
  const int first_row = row_tile * S::kRows, rows = segment.q_count * group;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;

  char* const memory = device::launch_memory();
  bf16* const q_tile = reinterpret_cast<bf16*>(memory);
  bf16* const kv_tiles = q_tile + S::kRows * kD;  // K, V, K, V
  const bf16** const key_rows = reinterpret_cast<const bf16**>(kv_tiles + 4 * kKeys * kD);
  int32_t* const key_positions = reinterpret_cast<int32_t*>(key_rows + kSlots * kKeys);
  int32_t* const q_positions = key_positions + kSlots * kKeys;

  for (int i = thread; i < S::kRows; i += S::kThreads) {
    const int m = first_row + i;
    q_positions[i] = m < rows ? segment.q_positions[m / group] : kPaddingQueryPos;
  }
  for (int i = thread; i < S::kRows * kChunks; i += S::kThreads) {
    const int r = i / kChunks, chunk = i % kChunks;
    const int m = first_row + r;
    const bool there = m < rows;
    const int row = there ? segment.q_first + m / group : 0;
    const int head = kv_head * group + (there ? m % group : 0);
    device::copy_async(q_tile + 8 * device::swizzled(r, chunk, kChunks),
                       q.at(row, head * kD + 8 * chunk), there);
  }
  device::commit_copies();
  __syncthreads();
  int32_t earliest = kPaddingKeyPos, latest = kPaddingQueryPos;
  for (int i = lane; i < S::kRows; i += kWarp) {
    if (first_row + i < rows) earliest = min(earliest, q_positions[i]);
    latest = max(latest, q_positions[i]);
  }
  earliest = device::warp_min(earliest);
  latest = device::warp_max(latest);

  // Tiles of this split, and the next of them that some row sees; all threads alike.
  const int tiles = (segment.kv.count + kKeys - 1) / kKeys;
  const int per_split = (tiles + mine.splits - 1) / mine.splits;
  const int end = min(tiles, (split + 1) * per_split);
  const Bounds* const of_segment = bounds + mine.first_bound;
  const int pairs = (segment.kv.count + kBoundKeys - 1) / kBoundKeys;
  constexpr int kPairs = kKeys / kBoundKeys;  // of a tile
  const auto seen_from = [&](int tile) {
    for (; tile < end; tile += kWarp) {
      int found = end;  // of the 32 tiles from here on, each lane one
      if (tile + lane < end) {
        for (int p = (tile + lane) * kPairs; p < min(pairs, (tile + lane + 1) * kPairs); ++p) {
          if (of_segment[p].least <= latest) found = tile + lane;
        }
      }
      found = device::warp_min(found);
      if (found < end) return found;
    }
    return end;
  };
  // Where the keys of a tile lie; null for padding, whose bytes may be no numbers: 0 times them
  // would not be 0.
  const auto look_up = [&](int tile, int slot) {
    for (int i = thread; i < kKeys; i += S::kThreads) {
      const int32_t key = tile * kKeys + i;
      const int32_t position = key < segment.kv.count ? segment.kv.positions[key] : kPaddingKeyPos;
      key_positions[slot * kKeys + i] = position;
      key_rows[slot * kKeys + i] = position == kPaddingKeyPos
                                       ? nullptr
                                       : row_of<bf16>(segment.kv, format, key) + kv_head * kD;
    }
  };
  const auto fetch = [&](int slot, int stage) {
    bf16* const keys = kv_tiles + stage * 2 * kKeys * kD;
    for (int i = thread; i < kKeys * kChunks; i += S::kThreads) {
      const int r = i / kChunks, chunk = i % kChunks;
      const bf16* const row = key_rows[slot * kKeys + r];
      const bool there = row != nullptr;
      const bf16* const from = there ? row + 8 * chunk : q.data;  // any address, if nothing is read
      const int at = 8 * device::swizzled(r, chunk, kChunks);
      device::copy_async(keys + at, from, there);
      device::copy_async(keys + kKeys * kD + at, there ? from + format.kv_heads * kD : from, there);
    }
  };

  float o[S::kRowTiles][kD / 8][4], top[S::kRowTiles][2], sum[S::kRowTiles][2];
  const auto empty = [&] {
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[t][n][e] = 0;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[t][half] = -INFINITY;  // of the scores times scale * log2 e
        sum[t][half] = 0;          // of this lane's columns
      }
    }
  };
  // acc = merge(acc, what has been seen since the last flush); of several splits, the split's own
  // result, which the first flush begins.
  const auto flush = [&](bool first) {
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m =
            first_row + (warp * S::kRowTiles + t) * 16 + device::product_row(lane, 2 * half);
        const bool leads = m < rows && lane % 4 == 0;  // of the row's four lanes
        const int head = kv_head * group + m % group;
        int64_t at = int64_t{segment.q_first + m / group} * acc.heads + head;
        if (mine.splits > 1) {
          at = mine.first_cell + (int64_t{split} * segment.q_count + m / group) * acc.heads + head;
        }
        float* const lse = (mine.splits > 1 ? results.lse : acc.lse) + at;
        float total = sum[t][half], before = -INFINITY;
        if (leads && !(first && mine.splits > 1)) before = *lse;
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
          total += __shfl_xor_sync(device::kAllLanes, total, step);
          before = fmaxf(before, __shfl_xor_sync(device::kAllLanes, before, step));
        }
        if (m >= rows) continue;
        const bool nothing = top[t][half] == -INFINITY;
        if (nothing && !(first && mine.splits > 1)) continue;  // it stays as it is
        const float seen = nothing ? -INFINITY : top[t][half] * kLn2 + logf(total);
        const float all = fmaxf(before, seen);
        const float part_before = part_of(before, all), part_seen = part_of(seen, all);
        const float parts = part_before + part_seen;
        const float carried = nothing ? 0 : part_before / parts;
        const float fresh = nothing ? 0 : part_seen / parts / total;
        if (leads) *lse = nothing ? -INFINITY : all + logf(parts);
        float* const out = (mine.splits > 1 ? results.o : acc.o) + at * kD;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          float2* const pair = reinterpret_cast<float2*>(out + 8 * n + lane % 4 * 2);
          float2 x = {fresh * o[t][n][2 * half], fresh * o[t][n][2 * half + 1]};
          if (carried != 0) {
            x.x += carried * pair->x;
            x.y += carried * pair->y;
          }
          *pair = x;
        }
      }
    }
  };
  empty();
  const float to_base_2 = scale * kLog2E;

  int tile = seen_from(split * per_split), next = tile < end ? seen_from(tile + 1) : end;
  if (tile < end) look_up(tile, 0);
  if (next < end) look_up(next, 1);
  __syncthreads();
  if (tile < end) fetch(0, 0);
  device::commit_copies();
  if (tile >= end && mine.splits > 1) flush(true);
  bool flushed = false;
  int keys_seen = 0, slot = 0;  // slot: of the tile
  for (int stage = 0; tile < end; stage ^= 1) {
    const int after = next < end ? seen_from(next + 1) : end;
    if (next < end) fetch((slot + 1) % kSlots, stage ^ 1);
    device::commit_copies();
    if (after < end) look_up(after, (slot + 2) % kSlots);
    device::wait_copies<1>();
    __syncthreads();
    const bf16* const keys = kv_tiles + stage * 2 * kKeys * kD;
    const bf16* const values = keys + kKeys * kD;
    int32_t most = kPaddingQueryPos;
    for (int p = tile * kPairs; p < min(pairs, (tile + 1) * kPairs); ++p) {
      most = max(most, of_segment[p].most);
    }
    // Hidden from some row: later than it, or not there at all.
    const bool masked = most > earliest || (tile + 1) * kKeys > segment.kv.count;
#pragma unroll 1
    for (int first = 0; first < kKeys; first += kStep) {
      float score[S::kRowTiles][kStep / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) {
        uint32_t a[S::kRowTiles][4];
#pragma unroll
        for (int t = 0; t < S::kRowTiles; ++t) {
          const int r = (warp * S::kRowTiles + t) * 16 + (lane & 15);
          device::load_matrices(a[t],
                                q_tile + 8 * device::swizzled(r, 2 * k + (lane >> 4), kChunks));
        }
#pragma unroll
        for (int n = 0; n < kStep / 16; ++n) {
          uint32_t b[4];  // keys 0-7: k 0-7, k 8-15; keys 8-15: the same
          const int r = first + 16 * n + (lane >> 4) * 8 + (lane & 7);
          device::load_matrices(b,
                                keys + 8 * device::swizzled(r, 2 * k + (lane >> 3 & 1), kChunks));
#pragma unroll
          for (int t = 0; t < S::kRowTiles; ++t) {
            device::mma_16x8x16(score[t][2 * n], a[t], b[0], b[1]);
            device::mma_16x8x16(score[t][2 * n + 1], a[t], b[2], b[3]);
          }
        }
      }
      if (masked) {
        const int32_t* const positions = key_positions + slot * kKeys + first;
#pragma unroll
        for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int r = (warp * S::kRowTiles + t) * 16 + device::product_row(lane, e);
            const int32_t query = q_positions[r];
#pragma unroll
            for (int n = 0; n < kStep / 8; ++n) {
              const int32_t key = positions[8 * n + device::product_column(lane, e)];
              if (key > query) score[t][n][e] = -INFINITY;
            }
          }
        }
      }
      uint32_t p[S::kRowTiles][kStep / 16][4];  // as the left side of the second product
      float kept[S::kRowTiles][2];
#pragma unroll
      for (int t = 0; t < S::kRowTiles; ++t) {
        float base[2], fresh[2] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float higher = -INFINITY;
#pragma unroll
          for (int n = 0; n < kStep / 8; ++n) {
            higher = fmaxf(higher, fmaxf(score[t][n][2 * half], score[t][n][2 * half + 1]));
          }
          // The four lanes of a row.
          higher = fmaxf(higher, __shfl_xor_sync(device::kAllLanes, higher, 1));
          higher = fmaxf(higher, __shfl_xor_sync(device::kAllLanes, higher, 2));
          higher = fmaxf(top[t][half], higher * to_base_2);
          base[half] = higher == -INFINITY ? 0 : higher;  // nothing seen: all exponents are -inf
          kept[t][half] = exp2f(top[t][half] - base[half]);
          top[t][half] = higher;
        }
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float x = exp2f(score[t][n][e] * to_base_2 - base[e / 2]);
            score[t][n][e] = x;
            fresh[e / 2] += x;
          }
          p[t][n / 2][n % 2 * 2] = device::packed(score[t][n][0], score[t][n][1]);
          p[t][n / 2][n % 2 * 2 + 1] = device::packed(score[t][n][2], score[t][n][3]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          sum[t][half] = sum[t][half] * kept[t][half] + fresh[half];
        }
      }
#pragma unroll
      for (int n = 0; n < kD / 16; ++n) {
        float part[S::kRowTiles][2][4] = {};  // of P V, from zero
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) {
          uint32_t b[4];  // columns 0-7: keys 0-7, keys 8-15; columns 8-15: the same
          const int r = first + 16 * k + (lane & 15);
          device::load_matrices_transposed(
              b, values + 8 * device::swizzled(r, 2 * n + (lane >> 4), kChunks));
#pragma unroll
          for (int t = 0; t < S::kRowTiles; ++t) {
            device::mma_16x8x16(part[t][0], p[t][k], b[0], b[1]);
            device::mma_16x8x16(part[t][1], p[t][k], b[2], b[3]);
          }
        }
#pragma unroll
        for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            o[t][2 * n][e] = o[t][2 * n][e] * kept[t][e / 2] + part[t][0][e];
            o[t][2 * n + 1][e] = o[t][2 * n + 1][e] * kept[t][e / 2] + part[t][1][e];
          }
        }
      }
    }
    keys_seen += kKeys;
    if (next >= end || keys_seen >= kFlushKeys) {
      flush(!flushed);
      empty();
      flushed = true;
      keys_seen = 0;
    }
    __syncthreads();  // the stage and the slot are written over next
    tile = next;
    next = after;
    slot = (slot + 1) % kSlots;
  }
  device::wait_copies<0>();
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

// Blocks of attend_tiles that the GPU holds at once.
template <class S>
int64_t room_of(const CudaQueue& queue) {
  static const int of_one = [] {
    int blocks = 0;
    allow_memory(attend_tiles<S>, S::kSharedBytes);
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, attend_tiles<S>, S::kThreads,
                                                             S::kSharedBytes),
               "the occupancy of attention");
    return std::max(blocks, 1);
  }();
  return int64_t{of_one} * queue.multiprocessors();
}

// Segments whose rows suit one shape of block.
template <class S>
void enqueue(CudaQueue& queue, std::vector<Work> work, ConstTensor q, const KvFormat& format,
             float scale, Partial acc, int32_t wanted_splits) {
  if (work.empty()) return;
  const int64_t group = acc.heads / format.kv_heads;
  int64_t pairs = 0, products = 0, blocks = 0, cells = 0;
  for (Work& w : work) {
    w.first_bound = static_cast<int32_t>(pairs);
    pairs += ceil_div(w.segment.kv.count, kBoundKeys);
    w.row_tiles = static_cast<int32_t>(ceil_div(w.segment.q_count * group, S::kRows));
    products += w.row_tiles * ceil_div(w.segment.kv.count, S::kKeys);
  }
  // Tiles of keys that a block should have, for all of them to be there at once.
  const int64_t fair = std::max<int64_t>(kLeastSplitKeys / S::kKeys,
                                         ceil_div(products * format.kv_heads, room_of<S>(queue)));
  int32_t longest = 0;
  for (Work& w : work) {
    const int64_t tiles = ceil_div(w.segment.kv.count, S::kKeys);
    const int64_t splits = wanted_splits > 0 ? wanted_splits : (tiles + fair / 2) / fair;
    w.splits =
        static_cast<int32_t>(std::clamp<int64_t>(splits, 1, std::min<int64_t>(tiles, kMostSplits)));
    w.first_block = static_cast<int32_t>(blocks);
    blocks += int64_t{w.row_tiles} * w.splits;
    if (w.splits == 1) continue;
    w.first_cell = cells;
    cells += int64_t{w.splits} * w.segment.q_count * acc.heads;
    longest = std::max(longest, w.segment.q_count);
  }
  ANNULUS_CHECK(work.size() <= 65535 && pairs <= INT32_MAX, work.size(), " segments");
  const CudaQueue::Mark mark(queue);
  const auto count = static_cast<int>(work.size());
  const std::span<const Work> table = queue.upload(std::span<const Work>(work));
  Bounds* const bounds = queue.scratch<Bounds>(pairs);
  const Results results = {queue.scratch<float>(cells * acc.head_dim), queue.scratch<float>(cells)};
  launch(queue.stream(), {blocks_for(pairs, 1)}, {kWarp}, find_bounds, table.data(), count, bounds);
  launch_with_memory(queue.stream(),
                     {blocks_for(blocks, 1), static_cast<unsigned>(format.kv_heads)}, {S::kThreads},
                     S::kSharedBytes, attend_tiles<S>, table.data(), count, bounds,
                     view<const bf16>(q), format, scale, acc, results);
  launch(queue.stream(),
         {static_cast<unsigned>(longest), static_cast<unsigned>(acc.heads),
          static_cast<unsigned>(count)},
         {static_cast<unsigned>(kGroups * acc.head_dim)}, combine_splits, table.data(), acc,
         results);
}

template <int kD>
void enqueue(CudaQueue& queue, std::span<const Segment> segments, ConstTensor q,
             const KvFormat& format, float scale, Partial acc, int32_t splits) {
  std::vector<Work> few, many;
  for (const Segment& segment : segments) {
    if (segment.q_count == 0 || segment.kv.count == 0) continue;
    Work work;
    work.segment = segment;
    const int64_t rows = int64_t{segment.q_count} * (acc.heads / format.kv_heads);
    (rows <= DecodeShape<kD>::kRows ? few : many).push_back(work);
  }
  enqueue<DecodeShape<kD>>(queue, std::move(few), q, format, scale, acc, splits);
  enqueue<PrefillShape<kD>>(queue, std::move(many), q, format, scale, acc, splits);
}

}  // namespace

bool tensor_cores_take(const KvFormat& format) {
  return format.dtype == DType::kBF16 && (format.head_dim == 64 || format.head_dim == 128);
}

void attend_tensor_cores(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                         const KvFormat& format, float scale, Partial acc, int32_t splits) {
  ANNULUS_CHECK(tensor_cores_take(format), "head_dim ", format.head_dim, ", ", name(format.dtype));
  if (format.head_dim == 64) {
    enqueue<64>(queue, segments, q, format, scale, acc, splits);
  } else {
    enqueue<128>(queue, segments, q, format, scale, acc, splits);
  }
}

}  // namespace annulus::kernels
