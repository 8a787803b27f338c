// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share on the device.
#pragma once

#include "kernels/cuda/attention.h"

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device.cuh"

namespace annulus::kernels {

template <class T>
__device__ const T* row_of(const KvRows& kv, const KvFormat& format, int32_t r) {
  const int64_t at =
      kv.pages == nullptr
          ? int64_t{r}
          : int64_t{kv.pages[r / format.page_tokens]} * format.page_tokens + r % format.page_tokens;
  return reinterpret_cast<const T*>(kv.base) + at * format.row_elements();
}

// What part `lse` of a sum is, in units of exp(top); 0 of nothing, where both may be -inf.
__device__ inline float part_of(float lse, float top) {
  return lse == -INFINITY ? 0 : expf(lse - top);
}

}  // namespace annulus::kernels
