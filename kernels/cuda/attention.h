// SPDX-License-Identifier: Apache-2.0
// The kernels behind attend<CudaQueue>, which takes the tensor cores where they can do it. Apart
// for tests, which compare them, and for each other.
#pragma once

#include <span>

#include "kernels/attention.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

// attend() by plain fp32 arithmetic: any type, head_dim up to 256.
void attend_plain(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                  const KvFormat& format, float scale, Partial acc);

// Whether attend_tensor_cores() knows a cache of this format: bf16, head_dim 64 or 128.
bool tensor_cores_take(const KvFormat& format);

// attend() by tensor cores: products of bf16 with fp32 sums, probabilities rounded to bf16 for the
// second product (not in lse), as on CPUs with AVX-512 BF16. splits: pieces that the keys of every
// segment are cut into, joined at the end; 0: as many as fill the GPU.
void attend_tensor_cores(CudaQueue& queue, ConstTensor q, std::span<const Segment> segments,
                         const KvFormat& format, float scale, Partial acc, int32_t splits = 0);

}  // namespace annulus::kernels
