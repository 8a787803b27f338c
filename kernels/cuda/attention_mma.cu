// SPDX-License-Identifier: Apache-2.0
// Computes: what kernels/attention.h defines, for a bf16 cache and head_dim 64 or 128, on tensor
//   cores (mma.sync; FlashAttention-2, arXiv 2307.08691, algorithm 1, without its returning to O in
//   low precision: acc is carried on in fp32, so that a hop of the ring neither rounds nor merges).
// Tensors: q [rows, heads * D] and KV rows bf16, acc fp32; all on the device.
// Mapping: the query heads of a KV head are rows of one product (row m = query m / group, head m %
//   group), so that keys are read once for all of them; a block has kRows of these rows and walks
//   over the tiles of keys that one of them sees, each of its warps kRowTiles * 16 rows. Decode has
//   few rows: there the keys are cut into splits, a block each, joined by combine_splits.
// Tiles: K and V by cp.async into two stages of kKeys keys, swizzled rows of shared memory; scores
//   32 keys at a time, so that they, O and a piece of Q fit into 255 registers.
// Numerics: fp32 sums; exponentials to base 2; probabilities bf16 in the second product only.
// Limits: 65,535 segments times splits a call. Not yet: wgmma and TMA.
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

constexpr int kStep = 32;       // keys whose scores are held at once
constexpr int kBoundKeys = 32;  // keys a pair of bounds stands for
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// A block's shape. Prefill: many rows; decode: a warp, whose splits fill the GPU.
template <int kD, int kRowTilesPerWarp, int kWarpsOfBlock, int kKeysOfTile>
struct BlockShape {
  static constexpr int kHeadDim = kD, kRowTiles = kRowTilesPerWarp, kWarps = kWarpsOfBlock,
                       kKeys = kKeysOfTile;
  static constexpr int kThreads = kWarps * kWarp, kRows = 16 * kRowTiles * kWarps;
  static constexpr int kChunks = kD / 8;  // of 16 bytes, of a row
  static constexpr int kQBytes = kRows * kD * 2, kTileBytes = kKeys * kD * 2;
  // Q, two stages of K and V, positions of the rows and of both stages' keys.
  static constexpr int kSharedBytes = kQBytes + 4 * kTileBytes + 4 * (kRows + 2 * kKeys);
};
template <int kD>
using PrefillShape = BlockShape<kD, 2, 4, 64>;
template <int kD>
using DecodeShape = BlockShape<kD, 1, 1, 32>;

struct Work {
  Segment segment;
  int64_t first_bound;  // of its tiles in the table of bounds
};
struct Bounds {
  int32_t least, most;  // positions of kBoundKeys keys
};

// A warp a pair of bounds. grid: (pairs of the longest segment, segments)
__global__ void __launch_bounds__(kWarp) find_bounds(const Work* work, Bounds* bounds) {
  const Work& mine = work[blockIdx.y];
  const int32_t key = static_cast<int32_t>(blockIdx.x) * kBoundKeys + static_cast<int>(threadIdx.x);
  if (static_cast<int32_t>(blockIdx.x) * kBoundKeys >= mine.segment.kv.count) return;
  // Keys that are not there are nobody's: they widen neither bound.
  const bool there = key < mine.segment.kv.count;
  int32_t least = there ? mine.segment.kv.positions[key] : kPaddingKeyPos;
  int32_t most = there ? least : kPaddingQueryPos;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    least = min(least, __shfl_xor_sync(device::kAllLanes, least, step));
    most = max(most, __shfl_xor_sync(device::kAllLanes, most, step));
  }
  if (threadIdx.x == 0) bounds[mine.first_bound + blockIdx.x] = {least, most};
}

// Results of a split, by [split][row][head]; null o: there is one, which goes straight into acc.
struct Splits {
  float* o = nullptr;
  float* lse = nullptr;
  int32_t count = 1;
};

// grid: (tiles of rows of the longest segment, KV heads, segments * splits)
template <class S>
__global__ void __launch_bounds__(S::kThreads)
    attend_tiles(const Work* work, const Bounds* bounds, View<const bf16> q, KvFormat format,
                 float scale, Partial acc, Splits splits) {
  constexpr int kD = S::kHeadDim, kChunks = S::kChunks;
  const Work& mine = work[blockIdx.z / splits.count];
  const Segment& segment = mine.segment;
  const int split = static_cast<int>(blockIdx.z) % splits.count;
  const int group = acc.heads / format.kv_heads, kv_head = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.x) * S::kRows;
  const int rows = segment.q_count * group;
  if (first_row >= rows) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;

  char* const memory = device::launch_memory();
  bf16* const q_tile = reinterpret_cast<bf16*>(memory);
  bf16* const kv_tiles = q_tile + S::kRows * kD;  // K, V, K, V
  int32_t* const q_positions = reinterpret_cast<int32_t*>(kv_tiles + 4 * S::kKeys * kD);
  int32_t* const key_positions = q_positions + S::kRows;

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
  for (int step = kWarp / 2; step > 0; step /= 2) {
    earliest = min(earliest, __shfl_xor_sync(device::kAllLanes, earliest, step));
    latest = max(latest, __shfl_xor_sync(device::kAllLanes, latest, step));
  }

  // Tiles of this split, and the next of them that some row sees; all threads alike.
  const int tiles = (segment.kv.count + S::kKeys - 1) / S::kKeys;
  const int per_split = (tiles + splits.count - 1) / splits.count;
  const int end = min(tiles, (split + 1) * per_split);
  const Bounds* const of_segment = bounds + mine.first_bound;
  const int pairs = (segment.kv.count + kBoundKeys - 1) / kBoundKeys;
  constexpr int kPairs = S::kKeys / kBoundKeys;  // of a tile
  const auto seen_from = [&](int tile) {
    for (; tile < end; tile += kWarp) {
      int found = end;  // of the 32 tiles from here on, each lane one
      if (tile + lane < end) {
        for (int p = (tile + lane) * kPairs; p < min(pairs, (tile + lane + 1) * kPairs); ++p) {
          if (of_segment[p].least <= latest) found = tile + lane;
        }
      }
      for (int step = kWarp / 2; step > 0; step /= 2) {
        found = min(found, __shfl_xor_sync(device::kAllLanes, found, step));
      }
      if (found < end) return found;
    }
    return end;
  };
  const auto fetch = [&](int tile, int stage) {
    bf16* const keys = kv_tiles + stage * 2 * S::kKeys * kD;
    for (int i = thread; i < S::kKeys * kChunks; i += S::kThreads) {
      const int r = i / kChunks, chunk = i % kChunks;
      const int32_t key = tile * S::kKeys + r;
      const int32_t position = key < segment.kv.count ? segment.kv.positions[key] : kPaddingKeyPos;
      // Zeros for padding, whose bytes may be no numbers: 0 times them would not be 0.
      const bool there = position != kPaddingKeyPos;
      const bf16* const row =
          row_of<bf16>(segment.kv, format, there ? key : 0) + kv_head * kD + 8 * chunk;
      const int at = 8 * device::swizzled(r, chunk, kChunks);
      device::copy_async(keys + at, row, there);
      device::copy_async(keys + S::kKeys * kD + at, row + format.kv_heads * kD, there);
      if (chunk == 0) key_positions[stage * S::kKeys + r] = position;
    }
  };

  float o[S::kRowTiles][kD / 8][4], top[S::kRowTiles][2], sum[S::kRowTiles][2];
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
  const float to_base_2 = scale * kLog2E;

  int tile = seen_from(split * per_split);
  if (tile < end) fetch(tile, 0);
  device::commit_copies();
  for (int stage = 0; tile < end; stage ^= 1) {
    const int next = seen_from(tile + 1);
    if (next < end) fetch(next, stage ^ 1);
    device::commit_copies();
    device::wait_copies<1>();
    __syncthreads();
    const bf16* const keys = kv_tiles + stage * 2 * S::kKeys * kD;
    const bf16* const values = keys + S::kKeys * kD;
    int32_t most = kPaddingQueryPos;
    for (int p = tile * kPairs; p < min(pairs, (tile + 1) * kPairs); ++p) {
      most = max(most, of_segment[p].most);
    }
    // Hidden from some row: later than it, or not there at all.
    const bool masked = most > earliest || (tile + 1) * S::kKeys > segment.kv.count;
#pragma unroll 1
    for (int first = 0; first < S::kKeys; first += kStep) {
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
        const int32_t* const positions = key_positions + stage * S::kKeys + first;
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
#pragma unroll
      for (int t = 0; t < S::kRowTiles; ++t) {
        float base[2], kept[2];
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
          kept[half] = exp2f(top[t][half] - base[half]);
          top[t][half] = higher;
          sum[t][half] *= kept[half];
        }
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float x = exp2f(score[t][n][e] * to_base_2 - base[e / 2]);
            score[t][n][e] = x;
            sum[t][e / 2] += x;
          }
          p[t][n / 2][n % 2 * 2] = device::packed(score[t][n][0], score[t][n][1]);
          p[t][n / 2][n % 2 * 2 + 1] = device::packed(score[t][n][2], score[t][n][3]);
        }
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) o[t][n][e] *= kept[e / 2];
        }
      }
#pragma unroll
      for (int k = 0; k < kStep / 16; ++k) {
#pragma unroll
        for (int n = 0; n < kD / 16; ++n) {
          uint32_t b[4];  // columns 0-7: keys 0-7, keys 8-15; columns 8-15: the same
          const int r = first + 16 * k + (lane & 15);
          device::load_matrices_transposed(
              b, values + 8 * device::swizzled(r, 2 * n + (lane >> 4), kChunks));
#pragma unroll
          for (int t = 0; t < S::kRowTiles; ++t) {
            device::mma_16x8x16(o[t][2 * n], p[t][k], b[0], b[1]);
            device::mma_16x8x16(o[t][2 * n + 1], p[t][k], b[2], b[3]);
          }
        }
      }
    }
    __syncthreads();  // the stage is written over next
    tile = next;
  }
  device::wait_copies<0>();

#pragma unroll
  for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m =
          first_row + (warp * S::kRowTiles + t) * 16 + device::product_row(lane, 2 * half);
      const bool leads = m < rows && lane % 4 == 0;  // of the row's four lanes
      const int64_t at =
          int64_t{segment.q_first + m / group} * acc.heads + kv_head * group + m % group;
      float total = sum[t][half], before = -INFINITY;
      if (leads && splits.o == nullptr) before = acc.lse[at];
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        total += __shfl_xor_sync(device::kAllLanes, total, step);
        before = fmaxf(before, __shfl_xor_sync(device::kAllLanes, before, step));
      }
      if (m >= rows) continue;
      const bool nothing = top[t][half] == -INFINITY;
      const float seen = nothing ? -INFINITY : top[t][half] * kLn2 + logf(total);
      float* out = acc.o + at * kD;
      float carried = 0, fresh = nothing ? 0 : 1 / total;
      if (splits.o != nullptr) {
        const int64_t place = split * acc.rows * acc.heads + at;
        out = splits.o + place * kD;
        if (leads) splits.lse[place] = seen;
      } else {
        if (nothing) continue;  // acc stays as it is
        const float all = fmaxf(before, seen);
        const float part_before = part_of(before, all), part_seen = part_of(seen, all);
        carried = part_before / (part_before + part_seen);
        fresh *= part_seen / (part_before + part_seen);
        if (leads) acc.lse[at] = all + logf(part_before + part_seen);
      }
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
}

// acc = merge(acc, every split in order). A block a row and head, a thread a column. grid: (query
// rows of the longest segment, heads, segments)
__global__ void combine_splits(const Work* work, Partial acc, Splits splits) {
  const Segment& segment = work[blockIdx.z].segment;
  if (static_cast<int>(blockIdx.x) >= segment.q_count) return;
  const int64_t at = (segment.q_first + int64_t{blockIdx.x}) * acc.heads + blockIdx.y;
  const int64_t stride = acc.rows * acc.heads;
  const float before = acc.lse[at];
  float all = before;
  for (int s = 0; s < splits.count; ++s) all = fmaxf(all, splits.lse[s * stride + at]);
  __syncthreads();  // all have read what one will write
  if (all == -INFINITY) return;
  const auto column = static_cast<int>(threadIdx.x);
  float* const out = acc.o + at * acc.head_dim + column;
  float total = part_of(before, all), x = total * *out;
  for (int s = 0; s < splits.count; ++s) {
    const float part = part_of(splits.lse[s * stride + at], all);
    total += part;
    if (part > 0) x += part * splits.o[(s * stride + at) * acc.head_dim + column];
  }
  *out = x / total;
  if (column == 0) acc.lse[at] = all + logf(total);
}

constexpr int32_t kMostBlocksInZ = 65535;

template <class S>
void enqueue(CudaQueue& queue, std::span<const Work> work, const Bounds* bounds, int32_t longest,
             int32_t most_keys, ConstTensor q, const KvFormat& format, float scale, Partial acc,
             int32_t wanted_splits) {
  const auto segments = static_cast<int32_t>(work.size());
  const int32_t group = acc.heads / format.kv_heads;
  const dim3 grid(blocks_for(int64_t{longest} * group, S::kRows),
                  static_cast<unsigned>(format.kv_heads));
  const int32_t tiles = static_cast<int32_t>(ceil_div(most_keys, S::kKeys));
  if (wanted_splits <= 0) {
    // As many blocks as the GPU holds at once, and no split of fewer than four tiles.
    const int64_t blocks = int64_t{grid.x} * grid.y * segments;
    const int64_t room = queue.multiprocessors() * ((int64_t{227} << 10) / S::kSharedBytes);
    wanted_splits =
        static_cast<int32_t>(std::clamp<int64_t>(room / blocks, 1, std::max(1, tiles / 4)));
  }
  Splits splits;
  splits.count =
      std::clamp(wanted_splits, 1, std::max(1, std::min(tiles, kMostBlocksInZ / segments)));
  if (splits.count > 1) {
    const int64_t cells = splits.count * acc.rows * acc.heads;
    splits.o = queue.scratch<float>(cells * acc.head_dim);
    splits.lse = queue.scratch<float>(cells);
  }
  launch_with_memory(queue.stream(),
                     {grid.x, grid.y, static_cast<unsigned>(segments * splits.count)},
                     {S::kThreads}, S::kSharedBytes, attend_tiles<S>, work.data(), bounds,
                     view<const bf16>(q), format, scale, acc, splits);
  if (splits.count > 1) {
    launch(queue.stream(),
           {static_cast<unsigned>(longest), static_cast<unsigned>(acc.heads),
            static_cast<unsigned>(segments)},
           {static_cast<unsigned>(acc.head_dim)}, combine_splits, work.data(), acc, splits);
  }
}

template <int kD>
void enqueue(CudaQueue& queue, std::span<const Work> work, const Bounds* bounds, int32_t longest,
             int32_t most_keys, ConstTensor q, const KvFormat& format, float scale, Partial acc,
             int32_t splits) {
  if (longest * (acc.heads / format.kv_heads) <= DecodeShape<kD>::kRows) {
    enqueue<DecodeShape<kD>>(queue, work, bounds, longest, most_keys, q, format, scale, acc,
                             splits);
  } else {
    enqueue<PrefillShape<kD>>(queue, work, bounds, longest, most_keys, q, format, scale, acc,
                              splits);
  }
}

}  // namespace

bool tensor_cores_take(const KvFormat& format) {
  return format.dtype == DType::kBF16 && (format.head_dim == 64 || format.head_dim == 128);
}

void attend_tensor_cores(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                         const KvFormat& format, float scale, Partial acc, int32_t splits) {
  ANNULUS_CHECK(tensor_cores_take(format), "head_dim ", format.head_dim, ", ", name(format.dtype));
  std::vector<Work> work;
  int64_t pairs = 0;
  int32_t longest = 0, most_keys = 0;
  for (const Segment& segment : segments) {
    if (segment.q_count == 0 || segment.kv.count == 0) continue;
    work.push_back({segment, pairs});
    pairs += ceil_div(segment.kv.count, kBoundKeys);
    longest = std::max(longest, segment.q_count);
    most_keys = std::max(most_keys, segment.kv.count);
  }
  if (work.empty()) return;
  ANNULUS_CHECK(work.size() <= size_t{kMostBlocksInZ}, work.size(), " segments");
  const CudaQueue::Mark mark(queue);
  const std::span<const Work> table = queue.upload(std::span<const Work>(work));
  Bounds* const bounds = queue.scratch<Bounds>(pairs);
  launch(queue.stream(), {blocks_for(most_keys, kBoundKeys), static_cast<unsigned>(work.size())},
         {kWarp}, find_bounds, table.data(), bounds);
  const auto with_head_dim = [&]<int kD>() {
    enqueue<kD>(queue, table, bounds, longest, most_keys, q, format, scale, acc, splits);
  };
  if (format.head_dim == 64) {
    with_head_dim.template operator()<64>();
  } else {
    with_head_dim.template operator()<128>();
  }
}

}  // namespace annulus::kernels
