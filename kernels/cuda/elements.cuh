// SPDX-License-Identifier: Apache-2.0
// Kernels of one thread an element: a matrix as a kernel sees it, and the loop over its elements.
// Included by .cu files.
#pragma once

#include <cstdint>

#include "kernels/core/tensor.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

template <class T>
struct View {
  T* data;
  int64_t rows, cols, stride;
  __device__ T* at(int64_t r, int64_t c) const { return data + r * stride + c; }
};
template <class T, class Any>
View<T> view(const Any& tensor) {
  return {tensor.template row<T>(0), tensor.rows, tensor.cols, tensor.row_stride};
}

// body(T{}) with T the element type.
template <class Body>
void with_type(DType dtype, const Body& body) {
  dtype == DType::kF32 ? body(float{}) : body(bf16{});
}

// element(r, c) for every element of rows x cols, a thread each.
template <class Element>
__global__ void each_element(int64_t rows, int64_t cols, Element element) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < rows * cols) element(i / cols, i % cols);
}
template <class Element>
void for_each(CudaQueue& queue, int64_t rows, int64_t cols, const Element& element) {
  launch(queue, {blocks_for(rows * cols, device::kBlock)}, {device::kBlock}, each_element<Element>,
         rows, cols, element);
}

}  // namespace annulus::kernels
