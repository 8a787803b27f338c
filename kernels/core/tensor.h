// SPDX-License-Identifier: Apache-2.0
// Non-owning, row-major view of a matrix of rows x cols elements; row_stride counts elements. Ops
// take views; who allocates is said where the memory lives (CpuQueue scratch, KvStore, weights).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"

namespace annulus::kernels {

template <class Void, class Byte>
struct BasicTensor {
  Void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0, row_stride = 0;

  template <class T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * row_stride;
  }
  BasicTensor slice_rows(int64_t first, int64_t count) const {
    ANNULUS_CHECK(first >= 0 && count >= 0 && first + count <= rows, first, "+", count, " of ",
                  rows);
    return {static_cast<Byte*>(data) + first * row_stride * size_bytes(dtype), dtype, count, cols,
            row_stride};
  }
  BasicTensor slice_cols(int64_t first, int64_t count) const {
    ANNULUS_CHECK(first >= 0 && count >= 0 && first + count <= cols, first, "+", count, " of ",
                  cols);
    return {static_cast<Byte*>(data) + first * size_bytes(dtype), dtype, rows, count, row_stride};
  }
  // A view may lose the right to write.
  template <class V, class B>
  requires(std::is_same_v<V, const void> && !std::is_const_v<Void>) operator BasicTensor<V, B>()
      const {  // NOLINT
    return {data, dtype, rows, cols, row_stride};
  }
};

using Tensor = BasicTensor<void, std::byte>;
using ConstTensor = BasicTensor<const void, const std::byte>;

inline Tensor matrix(float* data, int64_t rows, int64_t cols) {
  return {data, DType::kF32, rows, cols, cols};
}
inline ConstTensor matrix(const float* data, int64_t rows, int64_t cols) {
  return {data, DType::kF32, rows, cols, cols};
}

}  // namespace annulus::kernels
