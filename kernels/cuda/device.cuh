// SPDX-License-Identifier: Apache-2.0
// What kernels share on the device: elements as float, and sums over warps and blocks. A block that
// sums has kBlock threads in x.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/dtype.h"

namespace annulus::kernels::device {

inline constexpr int kWarp = 32, kBlock = 256;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float load(const float* p) {
  return *p;
}
__device__ inline float load(const bf16* p) {
  return to_float(*p);
}
__device__ inline void store(float* p, float x) {
  *p = x;
}
__device__ inline void store(bf16* p, float x) {
  *p = to_bf16(x);
}

// Every lane gets the sum, added in the same order on every lane.
__device__ inline float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

__device__ inline int32_t warp_min(int32_t x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = min(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ inline int32_t warp_max(int32_t x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Every thread of a block of kBlock gets the largest; x >= 0. NaN counts as 0.
__device__ inline float block_max(float x) {
  __shared__ float highest[kBlock / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  if (threadIdx.x % kWarp == 0) highest[threadIdx.x / kWarp] = x;
  __syncthreads();
  float most = 0;
  for (const float each : highest) most = fmaxf(most, each);
  return most;
}

// Every thread of a block of kBlock gets the sum. May be called again after a __syncthreads().
__device__ inline float block_sum(float x) {
  __shared__ float sums[kBlock / kWarp];
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0;
  for (const float sum : sums) total += sum;
  return total;
}

}  // namespace annulus::kernels::device
