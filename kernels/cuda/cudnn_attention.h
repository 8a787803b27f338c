// SPDX-License-Identifier: Apache-2.0
// CudnnAttention: attend() (kernels/attention.h) by cuDNN, which a queue has where its operator
// chose so (CudaQueue::use), for the segments that wgmma would have; the others stay with our
// kernels: a cache of f32, heads of other than 64 or 128, and few rows (decode).
//
// cuDNN knows rows and columns, not positions: 9.19 has no engine that compares a number a row with
// one a key. But it has them for the row's own number: what they compile for a described H100 is
// its flash kernel on wgmma, which loads a number a key and compares. So a segment is cut into
// blocks of a few fixed sizes, a plan each. A block's queries are gathered in the order of their
// positions, so that every key is seen from one row on, which a kernel of ours finds. That is exact
// for any positions, and costs 4 bytes a key instead of a bias of so many a score. o and lse of
// every block, fp32, are merged into acc.
//
// Bytes, in scratch while a call is enqueued, at most: q and o of 1,024 queries, 6 bytes an
// element, and 8,192 rows of the cache: 17 MB for 16/1 heads of 128 (405B, a rank of TP8), 59 MB
// for 32/8 (8B), and cuDNN's workspace.
//
// Cost beside cuDNN's own time, per 1,024 queries and 8,192 keys: these are copied, o is written
// and merged: 2 * 8,192 row_bytes + 16 bytes * 1,024 heads head_dim at 3 TB/s: 14 us where cuDNN
// multiplies for 115 us (16/1, at 600 TFLOP/s), 45 for 229 (32/8). Calculated, not measured. cuDNN
// multiplies hidden pairs too, and rows and keys that fill up a block: the host, which enqueues,
// does not know what is hidden. A causal prompt costs up to twice its pairs; ours skips them.
//
// Used from the thread of its queue. A plan is compiled, in 0.25 to 0.4 s, by prepare() or the
// first call with its size, four in all: not while the stream is captured.
#pragma once

#include <map>
#include <memory>
#include <span>

#include "kernels/attention.h"
#include "kernels/cuda/queue.h"
#include "kernels/cuda/sdpa.h"

namespace annulus::kernels {

// Two sizes of block, and how n rows are cut: into large ones, and small ones where the rest fills
// at most half of one.
struct BlockSizes {
  int32_t large, small;
  constexpr int32_t next(int32_t left) const { return left > large / 2 ? large : small; }
};
// 1,024 rows of 16 heads are 128 blocks of cuDNN's grid: one for each multiprocessor.
inline constexpr BlockSizes kCudnnQueries = {1024, 256}, kCudnnKeys = {8192, 1024};

class CudnnAttention {
 public:
  // api outlives it.
  explicit CudnnAttention(const CudnnApi& api) : api_(api) {}
  CudnnAttention(const CudnnAttention&) = delete;
  CudnnAttention& operator=(const CudnnAttention&) = delete;

  // Compiles the plans of a model with as many query heads on this rank, so that no call does.
  // Returns the queries of a full block; 0: attend() does not take the format, and there are none.
  int32_t prepare(int32_t heads, const KvFormat& format);

  // attend() of a format that tensor cores take, any number of rows. Numerics: sums in fp32,
  // probabilities rounded to bf16 for the second product, as our kernels on tensor cores.
  // DeviceError with cuDNN's own words.
  void attend(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
              const KvFormat& format, float scale, Partial acc);

 private:
  struct Block;
  void attend_block(CudaQueue& queue, const Block& block, const KvFormat& format, float scale,
                    Partial acc);
  Sdpa& plan_of(const SdpaShape& shape);

  const CudnnApi& api_;
  std::map<SdpaShape, std::unique_ptr<Sdpa>> plans_;
};

}  // namespace annulus::kernels
