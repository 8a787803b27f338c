// SPDX-License-Identifier: Apache-2.0
// The ops that treat rows one by one: embed, rms_norm, rope, swiglu, add, convert, gather_rows.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/queue.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/ops.h"

namespace annulus::kernels {
namespace {

const RowKernels& kernels_of(const CpuQueue& queue) {
  return ANNULUS_SELECT_ISA(queue.isa(), kRowKernels);
}

// row(r) for every row; a task is about 8K elements, so that a small op stays on one thread.
template <class Row>
void for_rows(CpuQueue& queue, int64_t rows, int64_t cols, const Row& row) {
  int64_t group = std::max(int64_t{8192} / std::max(cols, int64_t{1}), int64_t{1});
  queue.parallel_for((rows + group - 1) / group, [&](int64_t index, int) {
    int64_t end = std::min((index + 1) * group, rows);
    for (int64_t r = index * group; r < end; ++r) row(r);
  });
}

template <class A, class B>
void check_same_shape(const A& a, const B& b) {
  ANNULUS_CHECK(a.rows == b.rows && a.cols == b.cols, a.rows, " x ", a.cols, " and ", b.rows, " x ",
                b.cols);
}

template <class... Tensors>
void check_f32(const Tensors&... tensors) {
  ANNULUS_CHECK(((tensors.dtype == DType::kF32) && ...));
}

}  // namespace

template <>
void embed<CpuQueue>(CpuQueue& queue, Tensor out, const WeightSource& table,
                     std::span<const int32_t> ids) {
  check_f32(out);
  ANNULUS_CHECK(out.cols == table.cols && out.rows == static_cast<int64_t>(ids.size()), out.rows,
                " x ", out.cols, ", table ", table.cols, ", ids ", ids.size());
  for_rows(queue, out.rows, out.cols, [&](int64_t r) {
    dequantise_row(table, ids[static_cast<size_t>(r)], out.row<float>(r));
  });
}

template <>
void rms_norm<CpuQueue>(CpuQueue& queue, Tensor out, ConstTensor x, const float* weight,
                        float eps) {
  check_f32(out, x);
  check_same_shape(out, x);
  const RowKernels& kernels = kernels_of(queue);
  for_rows(queue, x.rows, x.cols, [&](int64_t r) {
    kernels.rms_norm(out.row<float>(r), x.row<const float>(r), weight, eps, x.cols);
  });
}

template <>
void rope<CpuQueue>(CpuQueue& queue, Tensor x, ConstTensor cos_sin, int32_t head_dim,
                    RopePairing pairing) {
  constexpr int32_t kMaxHeadDim = 1024;
  check_f32(x, cos_sin);
  ANNULUS_CHECK(head_dim > 0 && head_dim % 2 == 0 && head_dim <= kMaxHeadDim, head_dim);
  ANNULUS_CHECK(x.cols % head_dim == 0 && cos_sin.cols == head_dim && cos_sin.rows == x.rows, "x ",
                x.rows, " x ", x.cols, ", angles ", cos_sin.rows, " x ", cos_sin.cols);
  const RowKernels& kernels = kernels_of(queue);
  const bool adjacent = pairing == RopePairing::kAdjacent;
  const int32_t half = head_dim / 2;
  for_rows(queue, x.rows, x.cols, [&](int64_t r) {
    const float* angles = cos_sin.row<const float>(r);
    float cos[kMaxHeadDim], sin[kMaxHeadDim];
    for (int32_t i = 0; i < half; ++i) {
      int32_t a = adjacent ? 2 * i : i, b = adjacent ? 2 * i + 1 : half + i;
      cos[a] = cos[b] = angles[i];
      sin[a] = -angles[half + i];
      sin[b] = angles[half + i];
    }
    kernels.rope(x.row<float>(r), cos, sin, x.cols / head_dim, head_dim, adjacent);
  });
}

template <>
void swiglu<CpuQueue>(CpuQueue& queue, Tensor out, ConstTensor gate_up) {
  check_f32(out, gate_up);
  ANNULUS_CHECK(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols, out.rows, " x ", out.cols,
                " from ", gate_up.rows, " x ", gate_up.cols);
  const RowKernels& kernels = kernels_of(queue);
  for_rows(queue, out.rows, out.cols, [&](int64_t r) {
    const float* gate = gate_up.row<const float>(r);
    kernels.swiglu(out.row<float>(r), gate, gate + out.cols, out.cols);
  });
}

template <>
void add<CpuQueue>(CpuQueue& queue, Tensor x, ConstTensor y) {
  check_f32(x, y);
  check_same_shape(x, y);
  const RowKernels& kernels = kernels_of(queue);
  for_rows(queue, x.rows, x.cols,
           [&](int64_t r) { kernels.add(x.row<float>(r), y.row<const float>(r), x.cols); });
}

template <>
void convert<CpuQueue>(CpuQueue& queue, Tensor out, ConstTensor x) {
  check_same_shape(out, x);
  const RowKernels& kernels = kernels_of(queue);
  const size_t bytes = static_cast<size_t>(x.cols * size_bytes(x.dtype));
  for_rows(queue, x.rows, x.cols, [&](int64_t r) {
    if (out.dtype == x.dtype)
      std::memmove(out.slice_rows(r, 1).data, x.slice_rows(r, 1).data, bytes);
    else if (out.dtype == DType::kBF16)
      kernels.to_bf16(out.row<bf16>(r), x.row<const float>(r), x.cols);
    else
      kernels.to_f32(out.row<float>(r), x.row<const bf16>(r), x.cols);
  });
}

template <>
void gather_rows<CpuQueue>(CpuQueue& queue, Tensor dst, ConstTensor src,
                           std::span<const int32_t> index) {
  ANNULUS_CHECK(dst.dtype == src.dtype && dst.cols == src.cols, name(dst.dtype), name(src.dtype),
                dst.cols, " from ", src.cols);
  ANNULUS_CHECK(dst.rows == static_cast<int64_t>(index.size()), dst.rows, " and ", index.size());
  const size_t bytes = static_cast<size_t>(dst.cols * size_bytes(dst.dtype));
  for_rows(queue, dst.rows, dst.cols, [&](int64_t r) {
    ConstTensor from = src.slice_rows(index[static_cast<size_t>(r)], 1);
    std::memcpy(dst.slice_rows(r, 1).data, from.data, bytes);
  });
}

}  // namespace annulus::kernels
