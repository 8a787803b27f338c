// SPDX-License-Identifier: Apache-2.0
// The kernels behind attend<CudaQueue>, which takes for each segment the one that suits it. Apart
// for tests and benchmarks, which compare them.
#pragma once

#include <span>

#include "kernels/attention.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

enum class AttentionKernel : uint8_t { kPlain, kMma, kWgmma };

// What attend() takes for a segment whose product has `rows` rows: its queries times the query
// heads of a KV head. Tensor cores know bf16 and head_dim 64 and 128; wgmma's blocks are
// of two warpgroups of 64 rows and take what fills more than one, mma.sync the rest (decode).
// Every GPU that find_cuda_device() takes (compute capability 9.0) has both.
AttentionKernel attention_kernel(const KvFormat& format, int64_t rows);

// Whether tensor cores know a cache of this format.
bool tensor_cores_take(const KvFormat& format);

// attend() by plain fp32 arithmetic: any type, head_dim up to 256.
void attend_plain(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                  const KvFormat& format, float scale, Partial acc);

// attend() by tensor cores, any number of rows: products of bf16 with fp32 sums, probabilities
// rounded to bf16 for the second product (not in lse), as on CPUs with AVX-512 BF16. splits: pieces
// that the keys of every segment are cut into, joined at the end; 0: as many as fill the GPU.
void attend_mma(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                const KvFormat& format, float scale, Partial acc, int32_t splits = 0);
void attend_wgmma(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                  const KvFormat& format, float scale, Partial acc, int32_t splits = 0);

}  // namespace annulus::kernels
