// SPDX-License-Identifier: Apache-2.0
// The loops over one row behind the small ops (rows.cc), per ISA. Internal to kernels/cpu. Any
// length; out may be x where both are of one type.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

namespace annulus::kernels {

struct RowKernels {
  void (*rms_norm)(float* out, const float* x, const float* weight, float eps, int64_t n);
  // heads * head_dim elements; cos and sin [head_dim], one value per element, sin negative where
  // the partner is subtracted. Partner: the neighbour (adjacent), or head_dim / 2 away.
  void (*rope)(float* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim,
               bool adjacent);
  void (*swiglu)(float* out, const float* gate, const float* up, int64_t n);
  void (*add)(float* x, const float* y, int64_t n);
  void (*to_bf16)(bf16* out, const float* x, int64_t n);
  void (*to_f32)(float* out, const bf16* x, int64_t n);
};

ANNULUS_DECLARE_PER_ISA(RowKernels, kRowKernels)

}  // namespace annulus::kernels
