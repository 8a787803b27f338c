// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/ops.h"

#include <cmath>

namespace annulus::kernels {

ReferenceMatrix::ReferenceMatrix(int64_t row_count, int64_t col_count)
    : rows(row_count), cols(col_count), values(static_cast<size_t>(row_count * col_count)) {}

ReferenceMatrix::ReferenceMatrix(const float* from, int64_t row_count, int64_t col_count)
    : rows(row_count), cols(col_count), values(from, from + row_count * col_count) {}

ReferenceMatrix reference_weights(const WeightSource& source) {
  ReferenceMatrix w(source.rows, source.cols);
  std::vector<float> row(static_cast<size_t>(source.cols));
  for (int64_t r = 0; r < source.rows; ++r) {
    dequantise_row(source, r, row.data());
    for (int64_t c = 0; c < source.cols; ++c) w.at(r, c) = row[static_cast<size_t>(c)];
  }
  return w;
}

ReferenceMatrix reference_embed(const WeightSource& table, std::span<const int32_t> ids) {
  return reference_gather_rows(reference_weights(table), ids);
}

ReferenceMatrix reference_rms_norm(const ReferenceMatrix& x, std::span<const float> weight,
                                   double eps) {
  ReferenceMatrix out(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    double square = 0;
    for (int64_t c = 0; c < x.cols; ++c) square += x.at(r, c) * x.at(r, c);
    double rms = std::sqrt(square / static_cast<double>(x.cols) + eps);
    for (int64_t c = 0; c < x.cols; ++c)
      out.at(r, c) = x.at(r, c) / rms * static_cast<double>(weight[static_cast<size_t>(c)]);
  }
  return out;
}

ReferenceMatrix reference_matmul(const ReferenceMatrix& x, const ReferenceMatrix& w) {
  ReferenceMatrix out(x.rows, w.rows);
  for (int64_t m = 0; m < x.rows; ++m)
    for (int64_t n = 0; n < w.rows; ++n)
      for (int64_t k = 0; k < x.cols; ++k) out.at(m, n) += x.at(m, k) * w.at(n, k);
  return out;
}

ReferenceMatrix reference_rope(const ReferenceMatrix& x, const ReferenceMatrix& cos_sin,
                               int32_t head_dim, RopePairing pairing) {
  ReferenceMatrix out(x.rows, x.cols);
  const int64_t half = head_dim / 2;
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t head = 0; head < x.cols; head += head_dim)
      for (int64_t i = 0; i < half; ++i) {
        bool adjacent = pairing == RopePairing::kAdjacent;
        int64_t a = head + (adjacent ? 2 * i : i), b = head + (adjacent ? 2 * i + 1 : half + i);
        double cos = cos_sin.at(r, i), sin = cos_sin.at(r, half + i);
        out.at(r, a) = x.at(r, a) * cos - x.at(r, b) * sin;
        out.at(r, b) = x.at(r, a) * sin + x.at(r, b) * cos;
      }
  return out;
}

ReferenceMatrix reference_swiglu(const ReferenceMatrix& gate_up) {
  ReferenceMatrix out(gate_up.rows, gate_up.cols / 2);
  for (int64_t r = 0; r < out.rows; ++r)
    for (int64_t c = 0; c < out.cols; ++c) {
      double gate = gate_up.at(r, c);
      out.at(r, c) = gate / (1 + std::exp(-gate)) * gate_up.at(r, out.cols + c);
    }
  return out;
}

ReferenceMatrix reference_add(const ReferenceMatrix& x, const ReferenceMatrix& y) {
  ReferenceMatrix out = x;
  for (size_t i = 0; i < out.values.size(); ++i) out.values[i] += y.values[i];
  return out;
}

ReferenceMatrix reference_gather_rows(const ReferenceMatrix& src, std::span<const int32_t> index) {
  ReferenceMatrix out(static_cast<int64_t>(index.size()), src.cols);
  for (int64_t r = 0; r < out.rows; ++r)
    for (int64_t c = 0; c < src.cols; ++c) out.at(r, c) = src.at(index[static_cast<size_t>(r)], c);
  return out;
}

}  // namespace annulus::kernels
