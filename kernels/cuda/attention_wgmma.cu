// SPDX-License-Identifier: Apache-2.0
// Computes: what kernels/attention.h defines, for a bf16 cache and head_dim 64 or 128, on Hopper's
//   asynchronous tensor cores (the roles, the two turns and the overlap of softmax and products are
//   FlashAttention-3's, arXiv 2407.08608; acc is carried on in fp32, so that a hop of the ring
//   neither rounds nor merges).
// Tensors: q [rows, heads * D] and KV rows bf16, acc fp32; all on the device.
// Mapping: rows, splits and tiles of keys as attention_work.h has them. A block is three
//   warpgroups. One brings keys and values, a tile of kKeys after the other, into rings of kStages
//   stages: by TMA, a box a page, where all of a tile's keys are there; else (the end of a segment,
//   padding, whose bytes may be no numbers) row by row. Two have 64 rows each and, in turns, issue
//   the scores of a tile and P V of the tile before; while one's products run the other does its
//   softmax, and while its own scores' softmax runs its P V does.
// Tiles, bytes of shared memory, registers, for D = 128 / 64: 128 rows x 128 keys; Q 32 / 16 KiB, 2
//   / 4 stages of K and V 128 KiB; scores 64, O 64 / 32, P 32 registers of 232 (the bringers have
//   40), so that one block is on an SM.
// Numerics: exponentials to base 2; probabilities bf16 in the second product only. O is summed up
//   by the tensor cores over kFlushKeys keys at most: 1,024 additions of 16 products, each cut off
//   at 2^-23 of the sum at worst, so that all of them stay below 2^-13, where P has been rounded to
//   2^-9; then it goes into acc.
// Bound (an SM: 4,096 FLOP and 128 bytes of shared memory a cycle, 16 exponentials): a tile of 128
//   x 128 is 8.4 / 4.2 MFLOP, 2,048 / 1,024 cycles of tensor cores. It reads 6 KiB of shared memory
//   for each 64 x 128 x 16 of Q K^T (Q and K, 43 FLOP a byte) and 2 KiB each 64 x 64 x 16 of P V
//   (64 FLOP a byte), 32 being balance: 1,280 / 640 cycles. Its exponentials take 1,024: hidden by
//   the other warpgroup for D = 128, as long as the products for D = 64. HBM: kKeys * 4 D bytes for
//   512 D kKeys FLOP, 128 FLOP a byte, are balance 300 missed, but the blocks that run at once read
//   the same keys from L2. So tensor cores bound D = 128, exponentials as much D = 64. Expected,
//   not measured: compiled and emulated, not run on a GPU.
// Limits: head_dim 64 and 128; KV rows aligned to 16 bytes; 2^31 blocks.
#include <vector>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/tensor_map.h"

namespace annulus::kernels {
namespace {

using device::kWarp;
using device::kWarpgroup;

constexpr int kFlushKeys = 1 << 14;          // keys seen between two flushes into acc
constexpr int kSlab = 64;                    // columns of a swizzled row of 128 bytes
constexpr int kQueriesThere = 1, kTurn = 3;  // barriers, one each warpgroup of rows
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

// What a stage of K holds. Masked: some row of the block does not see some of its keys.
enum class Tile : int32_t { kWhole, kMasked, kEnd };

template <int kD>
struct WgmmaShape {
  static constexpr int kHeadDim = kD, kConsumers = 2, kKeys = 128, kStages = kD == 64 ? 4 : 2;
  static constexpr int kRows = 64 * kConsumers, kThreads = kWarpgroup * (1 + kConsumers);
  static constexpr int kSlabs = kD / kSlab;
  static constexpr int kSlabBytes = 128 * kKeys, kTileBytes = kSlabs * kSlabBytes;
  static constexpr int kQueryBytes = 2 * kD * 64;              // of a warpgroup
  static constexpr int kRegisters = 65536 / kThreads / 8 * 8;  // at the launch, of a thread
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <=
                    (1 + kConsumers) * kRegisters,
                "who takes registers waits until others have given as many");
};

// A block's memory. Matrices are slabs of 64 columns: rows of 128 bytes, one after the other.
template <class S>
struct Memory {
  char q[S::kConsumers][S::kQueryBytes];
  char k[S::kStages][S::kTileBytes], v[S::kStages][S::kTileBytes];
  uint64_t k_full[S::kStages], v_full[S::kStages], k_empty[S::kStages], v_empty[S::kStages];
  Tile tile[S::kStages];
  alignas(8) int32_t positions[S::kStages][S::kKeys];  // of masked tiles
};

// The place of 16-byte piece c of row r of a matrix of `rows` rows.
__device__ inline char* piece_of(char* matrix, int rows, int r, int c) {
  return matrix +
         device::swizzled_128(static_cast<uint32_t>(c / 8 * rows * 128 + r * 128 + c % 8 * 16));
}

// Step n's stage, and the parity of its turn.
template <class S>
struct Turn {
  int stage;
  uint32_t parity;
  __device__ explicit Turn(int n)
      : stage(n % S::kStages), parity(static_cast<uint32_t>(n / S::kStages & 1)) {}
};

// A warp's one arrival, after what all of its lanes did.
__device__ inline void arrive_as_warp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) device::mbarrier_arrive(barrier);
}

// The first warpgroup: every tile of keys that a row sees, into the stages.
template <class S>
__device__ __forceinline__ void bring_tiles(const BlockRows& my, const Bounds* bounds,
                                            const CUtensorMap* map, const KvFormat& format,
                                            Memory<S>& memory) {
  constexpr int kD = S::kHeadDim, kKeys = S::kKeys;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const Segment& segment = my.work.segment;
  const KvRows& kv = segment.kv;
  int32_t earliest = kPaddingKeyPos, latest = kPaddingQueryPos;
  for (int m = my.first_row + lane; m < min(my.rows, my.first_row + S::kRows); m += kWarp) {
    const int32_t position = segment.q_positions[my.query_of(m)];
    earliest = min(earliest, position);
    latest = max(latest, position);
  }
  earliest = device::warp_min(earliest);
  latest = device::warp_max(latest);
  const int32_t rows_of_box = box_rows(format, kv.pages != nullptr, kKeys);
  if (warp == 0 && rows_of_box > 0) device::fence_tensor_map(map);

  // Keys or values, which begin at `column` of the cache's rows.
  const auto bring = [&](int tile, bool whole, int column, char* to, uint64_t* full) {
    if (whole && warp == 0) {
      __syncwarp();
      if (lane == 0) device::mbarrier_arrive_expect_tx(full, S::kTileBytes);
      const int boxes = kKeys / rows_of_box;
      for (int i = lane; i < boxes * S::kSlabs; i += kWarp) {
        const int box = i % boxes, slab = i / boxes, key = tile * kKeys + box * rows_of_box;
        const int row = kv.pages == nullptr
                            ? key
                            : kv.pages[key / format.page_tokens] * format.page_tokens +
                                  key % format.page_tokens;
        device::tma_load(to + slab * S::kSlabBytes + box * rows_of_box * 128, map,
                         column + slab * kSlab, row, full);
      }
      return;
    }
    if (!whole) {
#pragma unroll 1  // few registers
      for (int i = thread; i < kKeys * kD / 8; i += kWarpgroup) {
        const int r = i / (kD / 8), c = i % (kD / 8), key = tile * kKeys + r;
        const bool there = key < kv.count && kv.positions[key] != kPaddingKeyPos;
        const bf16* const row = row_of<bf16>(kv, format, there ? key : 0) + column;
        device::copy_async(piece_of(to, kKeys, r, c), row + 8 * c, there);
      }
      device::commit_copies();
      device::wait_copies<0>();
      device::fence_proxy_async();
    }
    arrive_as_warp(full);
  };

  const KeyTiles<S> tiles(my, bounds);
  int n = 0;
  for (int tile = tiles.begin; (tile = tiles.seen_from(tile, latest)) < tiles.end; ++tile, ++n) {
    const Turn<S> turn(n);
    const int32_t most = tiles.most(tile);
    const bool masked = most > earliest || tiles.cut(tile);
    const bool whole = rows_of_box > 0 && most != kPaddingKeyPos && !tiles.cut(tile);
    device::mbarrier_wait(&memory.k_empty[turn.stage], turn.parity ^ 1);
    if (thread == 0) memory.tile[turn.stage] = masked ? Tile::kMasked : Tile::kWhole;
    if (masked) {
      const int key = tile * kKeys + thread;
      memory.positions[turn.stage][thread] = key < kv.count ? kv.positions[key] : kPaddingKeyPos;
    }
    bring(tile, whole, my.kv_head * kD, memory.k[turn.stage], &memory.k_full[turn.stage]);
    device::mbarrier_wait(&memory.v_empty[turn.stage], turn.parity ^ 1);
    bring(tile, whole, (format.kv_heads + my.kv_head) * kD, memory.v[turn.stage],
          &memory.v_full[turn.stage]);
  }
  const Turn<S> turn(n);
  device::mbarrier_wait(&memory.k_empty[turn.stage], turn.parity ^ 1);
  if (thread == 0) memory.tile[turn.stage] = Tile::kEnd;
  arrive_as_warp(&memory.k_full[turn.stage]);
}

// The other warpgroups: 64 rows each.
template <class S>
__device__ __forceinline__ void attend_rows(const BlockRows& my, const View<const bf16>& q,
                                            float scale, const Partial& acc, const Results& results,
                                            Memory<S>& memory) {
  constexpr int kD = S::kHeadDim, kKeys = S::kKeys;
  const int number = static_cast<int>(threadIdx.x) / kWarpgroup - 1;  // of the warpgroup
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int lane = thread % kWarp, warp = thread / kWarp;
  const Segment& segment = my.work.segment;
  const int first_row = my.first_row + 64 * number;

  for (int i = thread; i < 64 * kD / 8; i += kWarpgroup) {
    const int r = i / (kD / 8), c = i % (kD / 8), m = first_row + r;
    const bool there = m < my.rows;
    const int row = there ? segment.q_first + my.query_of(m) : 0;
    device::copy_async(piece_of(memory.q[number], 64, r, c),
                       q.at(row, my.head_of(there ? m : 0) * kD + 8 * c), there);
  }
  device::commit_copies();
  device::wait_copies<0>();
  device::fence_proxy_async();
  device::named_barrier_sync(kQueriesThere + number, kWarpgroup);

  // This thread's rows, and the last position that each sees.
  int rows[2];
  int32_t query[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    rows[half] = first_row + 16 * warp + device::product_row(lane, 2 * half);
    query[half] =
        rows[half] < my.rows ? segment.q_positions[my.query_of(rows[half])] : kPaddingQueryPos;
  }

  const uint64_t q_matrix =
      device::matrix_descriptor(device::shared_address(memory.q[number]), 16, 1024);
  float score[kKeys / 2], o[kD / 2], top[2], sum[2], kept[2];
  uint32_t p[kKeys / 16][4];  // as the left side of the second product

  const auto issue_scores = [&](int stage) {
    device::wgmma_fence();
    const uint64_t keys =
        device::matrix_descriptor(device::shared_address(memory.k[stage]), 16, 1024);
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      const auto slab = static_cast<uint32_t>(k / 4), within = static_cast<uint32_t>(k % 4 * 32);
      device::wgmma_keys(score, device::advanced(q_matrix, slab * 64 * 128 + within),
                         device::advanced(keys, slab * S::kSlabBytes + within), k > 0);
    }
    device::wgmma_commit();
  };
  const auto issue_output = [&](int stage) {
    device::wgmma_fence();
    const uint64_t values =
        device::matrix_descriptor(device::shared_address(memory.v[stage]), S::kSlabBytes, 1024);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      device::wgmma_values(o, p[k], device::advanced(values, static_cast<uint32_t>(k) * 2048));
    }
    device::wgmma_commit();
  };
  const float to_base_2 = scale * kLog2E;
  // The scores of the stage become exponentials relative to the rows' tops, of which `kept` is the
  // part that what has been summed up keeps; the stage is free.
  const auto softmax = [&](int stage, Tile tile) {
    if (tile == Tile::kMasked) {
      const int32_t* const positions = memory.positions[stage] + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const int32_t keys[2] = {positions[8 * n], positions[8 * n + 1]};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (keys[e % 2] > query[e / 2]) score[4 * n + e] = -INFINITY;
        }
      }
    }
    arrive_as_warp(&memory.k_empty[stage]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float higher = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        higher = fmaxf(higher, fmaxf(score[4 * n + 2 * half], score[4 * n + 2 * half + 1]));
      }
      // The four lanes of a row.
      higher = fmaxf(higher, __shfl_xor_sync(device::kAllLanes, higher, 1));
      higher = fmaxf(higher, __shfl_xor_sync(device::kAllLanes, higher, 2));
      higher = fmaxf(top[half], higher * to_base_2);
      const float base = higher == -INFINITY ? 0 : higher;  // nothing seen: all exponents are -inf
      kept[half] = exp2f(top[half] - base);
      top[half] = higher;
      float fresh = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const float x = device::exp2_fast(score[4 * n + e] * to_base_2 - base);
          score[4 * n + e] = x;
          fresh += x;
        }
      }
      sum[half] = sum[half] * kept[half] + fresh;
    }
  };
  const auto pack = [&] {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        p[n / 2][n % 2 * 2 + half] =
            device::packed(score[4 * n + 2 * half], score[4 * n + 2 * half + 1]);
      }
    }
  };
  const auto flush = [&](bool first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      merge_row<kD>(my, rows[half], first, top[half], sum[half], acc, results, [&](int n) {
        return float2{o[4 * n + 2 * half], o[4 * n + 2 * half + 1]};
      });
    }
  };
  const auto empty = [&] {
#pragma unroll
    for (float& x : o) x = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = -INFINITY;  // of the scores times scale * log2 e
      sum[half] = 0;          // of this lane's columns
    }
  };
  // The step's tile, there.
  const auto next_tile = [&](int n) {
    const Turn<S> turn(n);
    device::mbarrier_wait(&memory.k_full[turn.stage], turn.parity);
    return memory.tile[turn.stage];
  };
  const auto wait_for_values = [&](int n) {
    const Turn<S> turn(n);
    device::mbarrier_wait(&memory.v_full[turn.stage], turn.parity);
  };

  // Turns to issue products: each waits at its own barrier for the other's arrival there.
  constexpr int kBoth = S::kConsumers * kWarpgroup;
  const auto my_turn = [&] { device::named_barrier_sync(kTurn + number, kBoth); };
  const auto your_turn = [&] { device::named_barrier_arrive(kTurn + 1 - number, kBoth); };
  if (number == 1) your_turn();

  int n = 0;
  empty();
  Tile tile = next_tile(0);
  if (tile == Tile::kEnd && my.work.splits > 1) flush(true);
  bool flushed = false;
  while (tile != Tile::kEnd) {
    issue_scores(Turn<S>(n).stage);
    device::wgmma_wait<0>();
    softmax(Turn<S>(n).stage, tile);
    pack();
    const int until = n + kFlushKeys / kKeys;
    for (++n; (tile = next_tile(n)) != Tile::kEnd && n < until; ++n) {
      const int stage = Turn<S>(n).stage, before = Turn<S>(n - 1).stage;
      my_turn();
      issue_scores(stage);
      wait_for_values(n - 1);
      issue_output(before);
      your_turn();
      device::wgmma_wait<1>();
      softmax(stage, tile);
      device::wgmma_wait<0>();
      arrive_as_warp(&memory.v_empty[before]);
#pragma unroll
      for (int i = 0; i < kD / 2; ++i) o[i] *= kept[i % 4 / 2];
      pack();
    }
    wait_for_values(n - 1);
    issue_output(Turn<S>(n - 1).stage);
    device::wgmma_wait<0>();
    arrive_as_warp(&memory.v_empty[Turn<S>(n - 1).stage]);
    flush(!flushed);
    empty();
    flushed = true;
  }
  if (number == 0) my_turn();  // the arrival that is left
}

// grid: (blocks of all work, KV heads)
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    attend_warpgroups(const Work* work, int count, const Bounds* bounds, const CUtensorMap* maps,
                      View<const bf16> q, KvFormat format, float scale, Partial acc,
                      Results results) {
  const BlockRows my = rows_of_block<S>(work, count, format, acc);
  if (my.idle()) return;
  auto& memory = *reinterpret_cast<Memory<S>*>(device::launch_memory());
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      device::mbarrier_init(&memory.k_full[stage], kWarpgroup / kWarp);
      device::mbarrier_init(&memory.v_full[stage], kWarpgroup / kWarp);
      device::mbarrier_init(&memory.k_empty[stage], S::kConsumers * kWarpgroup / kWarp);
      device::mbarrier_init(&memory.v_empty[stage], S::kConsumers * kWarpgroup / kWarp);
    }
    device::fence_proxy_async();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    device::give_registers<kProducerRegisters>();
    bring_tiles<S>(my, bounds, maps + my.number, format, memory);
  } else {
    device::take_registers<kConsumerRegisters>();
    attend_rows<S>(my, q, scale, acc, results, memory);
  }
}

template <int kD>
void enqueue(CudaQueue& queue, std::span<const Segment> segments, ConstTensor q,
             const KvFormat& format, float scale, Partial acc, int32_t splits) {
  using S = WgmmaShape<kD>;
  constexpr int kBytes = sizeof(Memory<S>);
  static_assert(kBytes <= 227 << 10, "a block has 227 KiB of shared memory");
  static const bool allowed = [] {
    allow_memory(attend_warpgroups<S>, kBytes);
    return true;
  }();
  static_cast<void>(allowed);
  const CudaQueue::Mark mark(queue);
  const WorkPlan plan = plan_work(queue, segments, format, acc,
                                  {S::kRows, S::kKeys, queue.multiprocessors()}, splits);
  std::vector<CUtensorMap> maps;
  for (const Work& work : plan.work) {
    const KvRows& kv = work.segment.kv;
    const int32_t rows = box_rows(format, kv.pages != nullptr, S::kKeys);
    maps.emplace_back();
    if (rows > 0) make_tensor_map(maps.back(), kv, format, rows);
  }
  const auto on_device = queue.upload(std::span<const CUtensorMap>(maps));
  launch_with_memory(queue, {blocks_for(plan.blocks, 1), static_cast<unsigned>(format.kv_heads)},
                     {S::kThreads}, kBytes, attend_warpgroups<S>, plan.on_device.data(),
                     static_cast<int>(plan.work.size()), plan.bounds, on_device.data(),
                     view<const bf16>(q), format, scale, acc, plan.results);
  join_splits(queue, plan, acc);
}

}  // namespace

void attend_wgmma(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                  const KvFormat& format, float scale, Partial acc, int32_t splits) {
  ANNULUS_CHECK(tensor_cores_take(format), "head_dim ", format.head_dim, ", ", name(format.dtype));
  if (format.head_dim == 64) {
    enqueue<64>(queue, segments, q, format, scale, acc, splits);
  } else {
    enqueue<128>(queue, segments, q, format, scale, acc, splits);
  }
}

}  // namespace annulus::kernels
