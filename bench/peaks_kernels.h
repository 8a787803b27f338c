// SPDX-License-Identifier: Apache-2.0
// The loops behind bench/peaks.h, one table per ISA (kernels/cpu/isa.h).
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"

namespace annulus::kernels {

struct PeakKernels {
  double fma_flops, dot_flops;  // of one iteration
  // x: 32 floats; the results are folded into x, so that the loop is not removed.
  void (*fma)(float* x, int64_t iterations);
  void (*dot)(float* x, int64_t iterations);  // null without products of bf16
  // Sum of count floats, a multiple of 128.
  float (*read)(const float* p, int64_t count);
};

ANNULUS_DECLARE_PER_ISA(PeakKernels, kPeakKernels)

}  // namespace annulus::kernels
