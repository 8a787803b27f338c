// SPDX-License-Identifier: Apache-2.0
// kernels/cpu/vec.h seen through function pointers, one table per ISA, for vec_test.cc.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

namespace annulus::kernels {

struct VecChecks {
  void (*exp)(const float* x, float* out, int64_t vectors);
  void (*arithmetic)(const float* a, const float* b, const float* c, float (*out)[16]);
  void (*copy_n)(const float* from, float* to, int n);      // load_n, store
  void (*copy_to_n)(const float* from, float* to, int n);   // load, store_n
  void (*copy_bf16_n)(const bf16* from, float* to, int n);  // load_n, store
  void (*round)(const float* from, bf16* to, int n);        // load, store_n
  void (*widen)(const bf16* from, float* to);               // load, store
  float (*sum)(const float* x);
  float (*maximum)(const float* x);
  // select(p <= bound and lane < n, 1, 0); any and all of that mask.
  void (*visible)(const int32_t* p, int n, int32_t bound, float* out, bool* any, bool* all);
  void (*bytes)(const int8_t* from, float* to);
  void (*halves)(const uint16_t* from, float* to);
  // acc + pairs of a and b; null without the instruction.
  void (*dot)(const bf16* a, const bf16* b, const float* acc, float* out);
};

ANNULUS_DECLARE_PER_ISA(VecChecks, kVecChecks)

}  // namespace annulus::kernels
