// SPDX-License-Identifier: Apache-2.0
// Computes: what kernels/attention.h defines, in plain fp32 arithmetic without tensor cores: the
//   kernel that attention_mma.cu is compared with on a GPU, and the one for shapes that it does not
//   take.
// Tensors: q [rows, heads * head_dim] and KV rows in the cache's type, acc fp32; all on the device.
// Mapping: a block a query row and head of a segment. Its four warps share the keys; each keeps its
//   own maximum, sum and output (online softmax); together with what acc holds they are joined at
//   the end, so that a hop of the ring neither rounds nor needs a merge.
// Tiles: none; a lane holds head_dim / 32 elements of q and o, keys and values are read once a row.
// Numerics: fp32 sums, natural exponentials; an empty acc is (0, -inf).
// Limits: head_dim <= 256, even for kv_pack; 65,535 segments a call.
#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {
namespace {

using device::kWarp;
using device::load;
using device::store;

constexpr int kWarps = 4;  // of an attention block
constexpr int kMostHeadDim = 256, kMostPerLane = kMostHeadDim / kWarp;

// grid: (query rows of the longest segment, heads, segments)
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    attend_row(const Segment* segments, View<const T> q, KvFormat format, float scale,
               Partial acc) {
  const Segment segment = segments[blockIdx.z];
  if (blockIdx.x >= static_cast<unsigned>(segment.q_count)) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int d = format.head_dim, head = static_cast<int>(blockIdx.y);
  const int64_t row = segment.q_first + int64_t{blockIdx.x};
  const int kv_head = head / (acc.heads / format.kv_heads);
  const int32_t q_position = segment.q_positions[blockIdx.x];

  float query[kMostPerLane], o[kMostPerLane];
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i) {
    const int e = lane + i * kWarp;
    query[i] = e < d ? load(q.at(row, int64_t{head} * d + e)) : 0;
    o[i] = 0;
  }
  float top = -INFINITY, sum = 0;
  for (int32_t k = warp; k < segment.kv.count; k += kWarps) {
    if (segment.kv.positions[k] > q_position) continue;  // all lanes alike
    const T* key = row_of<T>(segment.kv, format, k) + kv_head * d;
    const T* value = key + format.kv_heads * d;
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i) {
      const int e = lane + i * kWarp;
      if (e < d) dot += query[i] * load(key + e);
    }
    const float score = device::warp_sum(dot) * scale;
    const float higher = fmaxf(top, score);
    const float kept = part_of(top, higher), fresh = expf(score - higher);
    sum = sum * kept + fresh;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i) {
      const int e = lane + i * kWarp;
      if (e < d) o[i] = o[i] * kept + fresh * load(value + e);
    }
    top = higher;
  }

  __shared__ float tops[kWarps], sums[kWarps], outputs[kWarps][kMostHeadDim];
  if (lane == 0) {
    tops[warp] = top;
    sums[warp] = sum;
  }
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i) outputs[warp][lane + i * kWarp] = o[i];
  float* const lse = acc.lse + row * acc.heads + head;
  const float before = *lse;
  __syncthreads();
  float all = before;
  for (const float t : tops) all = fmaxf(all, t);
  if (all == -INFINITY) return;  // nothing seen, before or now
  const float carried = part_of(before, all);
  float total = carried, part[kWarps];
  for (int w = 0; w < kWarps; ++w) {
    part[w] = part_of(tops[w], all);
    total += part[w] * sums[w];
  }
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kWarps * kWarp) {
    float* const out = acc.o + (row * acc.heads + head) * d + e;
    float joined = carried * *out;
    for (int w = 0; w < kWarps; ++w) joined += part[w] * outputs[w][e];
    *out = joined / total;
  }
  if (threadIdx.x == 0) *lse = all + logf(total);
}

// A block a row and head.
__global__ void __launch_bounds__(device::kBlock) merge_rows(Partial into, Partial from) {
  const int64_t at = blockIdx.x;
  const float a = into.lse[at], b = from.lse[at];
  __syncthreads();  // all have read what one will write
  const float top = fmaxf(a, b);
  if (top == -INFINITY) return;
  const float part_a = part_of(a, top), part_b = part_of(b, top), total = part_a + part_b;
  for (int e = static_cast<int>(threadIdx.x); e < into.head_dim; e += device::kBlock) {
    const int64_t i = at * into.head_dim + e;
    into.o[i] = (part_a * into.o[i] + part_b * from.o[i]) / total;
  }
  if (threadIdx.x == 0) into.lse[at] = top + logf(total);
}

// An element is a column of o, or the lse behind them.
struct Clear {
  Partial acc;
  __device__ void operator()(int64_t r, int64_t c) const {
    if (c < acc.head_dim) {
      acc.o[r * acc.head_dim + c] = 0;
    } else {
      acc.lse[r] = -INFINITY;
    }
  }
};

template <class T>
struct KvAppend {
  View<const float> k, v;
  T* base;
  const int64_t* slot_rows;
  __device__ void operator()(int64_t r, int64_t c) const {
    const float x = c < k.cols ? *k.at(r, c) : *v.at(r, c - k.cols);
    store(base + slot_rows[r] * 2 * k.cols + c, x);
  }
};

// Rows `first` on of the packed payload.
struct PackedPart {
  int64_t first = 0;
  KvRows rows;
};

struct KvPack {
  const PackedPart* parts;
  int32_t count;
  uint32_t* out;
  KvFormat format;  // of pairs of elements, or of single f32
  __device__ void operator()(int64_t r, int64_t c) const {
    int32_t part = 0;
    while (part + 1 < count && parts[part + 1].first <= r) ++part;
    const auto* row =
        row_of<uint32_t>(parts[part].rows, format, static_cast<int32_t>(r - parts[part].first));
    out[r * format.row_elements() + c] = row[c];
  }
};

void check_partial(const Partial& acc, const KvFormat& format) {
  ANNULUS_CHECK(acc.head_dim == format.head_dim && acc.heads % format.kv_heads == 0, acc.heads,
                " heads of ", acc.head_dim, ", cache ", format.kv_heads, " of ", format.head_dim);
  ANNULUS_CHECK(format.head_dim <= kMostHeadDim, "head_dim ", format.head_dim, " is above ",
                kMostHeadDim);
}

}  // namespace

template <>
void clear<CudaQueue>(CudaQueue& queue, Partial acc) {
  for_each(queue, acc.rows * acc.heads, acc.head_dim + 1, Clear{acc});
}

template <>
void attend<CudaQueue>(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                       const KvFormat& format, float scale, Partial acc) {
  check_partial(acc, format);
  ANNULUS_CHECK(
      q.dtype == format.dtype && q.rows == acc.rows && q.cols == int64_t{acc.heads} * acc.head_dim,
      q.rows, " x ", q.cols, " queries");
  for (const Segment& segment : segments) {
    ANNULUS_CHECK(segment.q_first >= 0 && segment.q_first + int64_t{segment.q_count} <= q.rows,
                  "rows ", segment.q_first, " + ", segment.q_count, " of ", q.rows);
  }
  const auto kernel_of = [&](const Segment& s) {
    return attention_kernel(format, int64_t{s.q_count} * (acc.heads / format.kv_heads));
  };
  const auto enqueue = [&](AttentionKernel kernel, std::span<const Segment> its) {
    switch (kernel) {
      case AttentionKernel::kPlain: return attend_plain(queue, q, its, format, scale, acc);
      case AttentionKernel::kMma: return attend_mma(queue, q, its, format, scale, acc);
      case AttentionKernel::kWgmma:
        if (queue.cudnn() != nullptr) {
          return queue.cudnn()->attend(queue, q, its, format, scale, acc);
        }
        return attend_wgmma(queue, q, its, format, scale, acc);
    }
  };
  each_way(segments, kernel_of, enqueue);
}

bool tensor_cores_take(const KvFormat& format) {
  return format.dtype == DType::kBF16 && (format.head_dim == 64 || format.head_dim == 128);
}

AttentionKernel attention_kernel(const KvFormat& format, int64_t rows) {
  if (!tensor_cores_take(format)) return AttentionKernel::kPlain;
  return rows > 64 ? AttentionKernel::kWgmma : AttentionKernel::kMma;
}

void attend_plain(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                  const KvFormat& format, float scale, Partial acc) {
  int32_t longest = 0;
  for (const Segment& segment : segments) longest = std::max(longest, segment.q_count);
  if (longest == 0) return;
  const CudaQueue::Mark mark(queue);
  const std::span<const Segment> table = queue.upload(segments);
  const dim3 grid = {static_cast<unsigned>(longest), static_cast<unsigned>(acc.heads),
                     static_cast<unsigned>(segments.size())};
  const auto enqueue = [&]<class T>(T) {
    launch(queue, grid, {kWarps * kWarp}, attend_row<T>, table.data(), view<const T>(q), format,
           scale, acc);
  };
  with_type(format.dtype, enqueue);
}

template <>
void merge<CudaQueue>(CudaQueue& queue, Partial into, Partial from) {
  ANNULUS_CHECK(
      into.rows == from.rows && into.heads == from.heads && into.head_dim == from.head_dim,
      into.rows, " and ", from.rows, " rows");
  launch(queue, {blocks_for(into.rows * into.heads, 1)}, {device::kBlock}, merge_rows, into, from);
}

template <>
void kv_append<CudaQueue>(CudaQueue& queue, ConstTensor k, ConstTensor v, std::byte* base,
                          std::span<const int64_t> slot_rows, const KvFormat& format) {
  ANNULUS_CHECK(k.dtype == DType::kF32 && v.dtype == DType::kF32 &&
                    2 * k.cols == format.row_elements() && v.cols == k.cols && v.rows == k.rows &&
                    k.rows == static_cast<int64_t>(slot_rows.size()),
                k.rows, " x ", k.cols, " keys for ", slot_rows.size(), " rows");
  with_type(format.dtype, [&]<class T>(T) {
    for_each(queue, k.rows, 2 * k.cols,
             KvAppend<T>{view<const float>(k), view<const float>(v), reinterpret_cast<T*>(base),
                         slot_rows.data()});
  });
}

template <>
void kv_pack<CudaQueue>(CudaQueue& queue, std::byte* out, std::span<const KvRows> rows,
                        const KvFormat& format) {
  std::vector<PackedPart> parts;
  int64_t total = 0;
  for (const KvRows& r : rows) {
    if (r.count == 0) continue;
    parts.push_back({total, r});
    total += r.count;
  }
  if (total == 0) return;
  const CudaQueue::Mark mark(queue);
  const auto table = queue.upload(std::span<const PackedPart>(parts));
  KvFormat words = format;  // the same bytes as 32-bit words
  if (format.dtype == DType::kBF16) words.head_dim /= 2;
  ANNULUS_CHECK(format.head_dim % 2 == 0, "head_dim ", format.head_dim, " is odd");
  for_each(queue, total, words.row_elements(),
           KvPack{table.data(), static_cast<int32_t>(parts.size()),
                  reinterpret_cast<uint32_t*>(out), words});
}

}  // namespace annulus::kernels
