// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_messages.h"

namespace annulus::parallel {

void sum_in_rank_order(std::span<float> data, int32_t me, int32_t ranks, float* others,
                       int64_t others_stride) {
  const size_t count = data.size();
  // Rank 0 adds up in place; the others start from rank 0's part and meet their own on the way.
  float* __restrict sum = me == 0 ? data.data() : others;
  for (int32_t r = 1; r < ranks; ++r) {
    const float* __restrict part = r == me ? data.data() : others + r * others_stride;
    for (size_t i = 0; i < count; ++i) sum[i] += part[i];
  }
  if (me != 0) std::memcpy(data.data(), sum, count * sizeof(float));
}

}  // namespace annulus::parallel
