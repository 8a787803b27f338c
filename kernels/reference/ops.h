// SPDX-License-Identifier: Apache-2.0
// The ops of kernels/ops.h in double precision and by the shortest loops: the oracle of the
// kernels. Row-major, no views. Linked by tests and bench only; one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace annulus::kernels {

struct ReferenceMatrix {
  ReferenceMatrix(int64_t row_count, int64_t col_count);  // zeros
  ReferenceMatrix(const float* from, int64_t row_count, int64_t col_count);

  int64_t rows, cols;
  std::vector<double> values;

  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

ReferenceMatrix reference_weights(const WeightSource& source);
ReferenceMatrix reference_embed(const WeightSource& table, std::span<const int32_t> ids);
ReferenceMatrix reference_rms_norm(const ReferenceMatrix& x, std::span<const float> weight,
                                   double eps);
// out[m, n] = sum_k x[m, k] w[n, k]
ReferenceMatrix reference_matmul(const ReferenceMatrix& x, const ReferenceMatrix& w);
// cos_sin as in ops.h.
ReferenceMatrix reference_rope(const ReferenceMatrix& x, const ReferenceMatrix& cos_sin,
                               int32_t head_dim, RopePairing pairing);
ReferenceMatrix reference_swiglu(const ReferenceMatrix& gate_up);
ReferenceMatrix reference_add(const ReferenceMatrix& x, const ReferenceMatrix& y);
ReferenceMatrix reference_gather_rows(const ReferenceMatrix& src, std::span<const int32_t> index);

}  // namespace annulus::kernels
