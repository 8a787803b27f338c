// SPDX-License-Identifier: Apache-2.0
// Computes: what kernels/attention.h defines, for a bf16 cache and head_dim 64 or 128, on tensor
//   cores (mma.sync; FlashAttention-2, arXiv 2307.08691, algorithm 1, without its returning to O in
//   low precision: acc is carried on in fp32, so that a hop of the ring neither rounds nor merges).
// Tensors: q [rows, heads * D] and KV rows bf16, acc fp32; all on the device.
// Mapping: the query heads of a KV head are rows of one product (attention_work.h), so that keys
//   are read once for all of them; a block has kRows of these rows and walks over the tiles of keys
//   that one of them sees, each of its warps kRowTiles * 16 rows. Where few rows meet many keys
//   (decode) the keys are cut into splits, a block each; how many is each segment's own number.
// Tiles: K and V by cp.async into two stages of kKeys keys, swizzled rows of shared memory; where
//   the keys of the tile after the next lie is looked up meanwhile. Scores 32 keys at a time, so
//   that they, O and a piece of Q fit into 255 registers.
// Numerics: exponentials to base 2; probabilities bf16 in the second product only. The sums of P
//   and of P V begin at zero every 32 keys, are added to those of up to kFlushKeys keys, and these
//   go into acc: rounding grows with these few steps and not with keys.
// Limits: head_dim 64 and 128; 2^31 blocks. Segments of many rows: attention_wgmma.cu.
#include <algorithm>

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
constexpr int kFlushKeys = 1 << 14;  // keys seen between two flushes into acc
constexpr int kSlots = 3;            // tiles whose keys have been looked up: read, under way, next

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

// grid: (blocks of all work, KV heads)
template <class S>
__global__ void __launch_bounds__(S::kThreads)
    attend_tiles(const Work* work, int count, const Bounds* bounds, View<const bf16> q,
                 KvFormat format, float scale, Partial acc, Results results) {
  constexpr int kD = S::kHeadDim, kChunks = S::kChunks, kKeys = S::kKeys;
  const BlockRows my = rows_of_block<S>(work, count, format, acc);
  if (my.idle()) return;
  const Segment& segment = my.work.segment;
  const int first_row = my.first_row, rows = my.rows;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;

  char* const memory = device::launch_memory();
  bf16* const q_tile = reinterpret_cast<bf16*>(memory);
  bf16* const kv_tiles = q_tile + S::kRows * kD;  // K, V, K, V
  const bf16** const key_rows = reinterpret_cast<const bf16**>(kv_tiles + 4 * kKeys * kD);
  int32_t* const key_positions = reinterpret_cast<int32_t*>(key_rows + kSlots * kKeys);
  int32_t* const q_positions = key_positions + kSlots * kKeys;

  for (int i = thread; i < S::kRows; i += S::kThreads) {
    const int m = first_row + i;
    q_positions[i] = m < rows ? segment.q_positions[my.query_of(m)] : kPaddingQueryPos;
  }
  for (int i = thread; i < S::kRows * kChunks; i += S::kThreads) {
    const int r = i / kChunks, chunk = i % kChunks;
    const int m = first_row + r;
    const bool there = m < rows;
    const int row = there ? segment.q_first + my.query_of(m) : 0;
    const int head = my.head_of(there ? m : 0);
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

  const KeyTiles<S> tiles(my, bounds);
  // Where the keys of a tile lie; null for padding, whose bytes may be no numbers: 0 times them
  // would not be 0.
  const auto look_up = [&](int tile, int slot) {
    for (int i = thread; i < kKeys; i += S::kThreads) {
      const int32_t key = tile * kKeys + i;
      const int32_t position = key < segment.kv.count ? segment.kv.positions[key] : kPaddingKeyPos;
      key_positions[slot * kKeys + i] = position;
      key_rows[slot * kKeys + i] = position == kPaddingKeyPos
                                       ? nullptr
                                       : row_of<bf16>(segment.kv, format, key) + my.kv_head * kD;
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
  // acc = merge(acc, what has been seen since the last flush), or so of a split.
  const auto flush = [&](bool first) {
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m =
            first_row + (warp * S::kRowTiles + t) * 16 + device::product_row(lane, 2 * half);
        merge_row<kD>(my, m, first, top[t][half], sum[t][half], acc, results, [&](int n) {
          return float2{o[t][n][2 * half], o[t][n][2 * half + 1]};
        });
      }
    }
  };
  empty();
  const float to_base_2 = scale * kLog2E;

  const int end = tiles.end;
  int tile = tiles.seen_from(tiles.begin, latest);
  int next = tile < end ? tiles.seen_from(tile + 1, latest) : end;
  if (tile < end) look_up(tile, 0);
  if (next < end) look_up(next, 1);
  __syncthreads();
  if (tile < end) fetch(0, 0);
  device::commit_copies();
  if (tile >= end && my.work.splits > 1) flush(true);
  bool flushed = false;
  int keys_seen = 0, slot = 0;  // slot: of the tile
  for (int stage = 0; tile < end; stage ^= 1) {
    const int after = next < end ? tiles.seen_from(next + 1, latest) : end;
    if (next < end) fetch((slot + 1) % kSlots, stage ^ 1);
    device::commit_copies();
    if (after < end) look_up(after, (slot + 2) % kSlots);
    device::wait_copies<1>();
    __syncthreads();
    const bf16* const keys = kv_tiles + stage * 2 * kKeys * kD;
    const bf16* const values = keys + kKeys * kD;
    // Hidden from some row: later than it, or not there at all.
    const bool masked = tiles.most(tile) > earliest || tiles.cut(tile);
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

template <class S>
void enqueue(CudaQueue& queue, std::span<const Segment> segments, ConstTensor q,
             const KvFormat& format, float scale, Partial acc, int32_t splits) {
  const CudaQueue::Mark mark(queue);
  const WorkPlan plan =
      plan_work(queue, segments, format, acc, {S::kRows, S::kKeys, room_of<S>(queue)}, splits);
  launch_with_memory(queue, {blocks_for(plan.blocks, 1), static_cast<unsigned>(format.kv_heads)},
                     {S::kThreads}, S::kSharedBytes, attend_tiles<S>, plan.on_device.data(),
                     static_cast<int>(plan.work.size()), plan.bounds, view<const bf16>(q), format,
                     scale, acc, plan.results);
  join_splits(queue, plan, acc);
}

template <int kD>
void enqueue(CudaQueue& queue, std::span<const Segment> segments, ConstTensor q,
             const KvFormat& format, float scale, Partial acc, int32_t splits) {
  const auto is_few = [&](const Segment& s) {
    return int64_t{s.q_count} * (acc.heads / format.kv_heads) <= DecodeShape<kD>::kRows;
  };
  each_way(segments, is_few, [&](bool few, std::span<const Segment> its) {
    few ? enqueue<DecodeShape<kD>>(queue, its, q, format, scale, acc, splits)
        : enqueue<PrefillShape<kD>>(queue, its, q, format, scale, acc, splits);
  });
}

}  // namespace

void attend_mma(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                const KvFormat& format, float scale, Partial acc, int32_t splits) {
  ANNULUS_CHECK(tensor_cores_take(format), "head_dim ", format.head_dim, ", ", name(format.dtype));
  if (format.head_dim == 64) {
    enqueue<64>(queue, segments, q, format, scale, acc, splits);
  } else {
    enqueue<128>(queue, segments, q, format, scale, acc, splits);
  }
}

}  // namespace annulus::kernels
