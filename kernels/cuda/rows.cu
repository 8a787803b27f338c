// SPDX-License-Identifier: Apache-2.0
// Computes: the ops that treat rows one by one: embed, rms_norm, rope, swiglu, add, convert,
//   gather_rows (kernels/ops.h).
// Tensors: f32 or bf16 on the device; where the contract speaks of f32 activations, outputs may
//   here be bf16 too, those of rms_norm and swiglu also F8: what a tensor core reads next.
// Mapping: one thread an element or a pair; rms_norm, and swiglu to F8, have a block a row.
// Tiles: none; memory-bound.
// Numerics: fp32; a bf16 output is rounded once, to nearest even. For F8 (f8.h) a value is computed
//   twice, for the row's scale and for its code, as it is for f32.
// Limits: 2^31 blocks of 256 elements.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/f8.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/queue.h"
#include "kernels/ops.h"

namespace annulus::kernels {
namespace {

using device::kBlock;
using device::load;
using device::store;

template <class A, class B>
void check_same_shape(const A& a, const B& b) {
  ANNULUS_CHECK(a.rows == b.rows && a.cols == b.cols, a.rows, " x ", a.cols, " and ", b.rows, " x ",
                b.cols);
}

template <class In, class Out>
struct Convert {
  View<const In> x;
  View<Out> out;
  __device__ void operator()(int64_t r, int64_t c) const { store(out.at(r, c), load(x.at(r, c))); }
};

struct Add {
  View<float> x;
  View<const float> y;
  __device__ void operator()(int64_t r, int64_t c) const { *x.at(r, c) += *y.at(r, c); }
};

__device__ float swiglu_of(const View<const float>& gate_up, int64_t r, int64_t c, int64_t cols) {
  const float gate = *gate_up.at(r, c), up = *gate_up.at(r, cols + c);
  return gate / (1 + expf(-gate)) * up;
}

template <class Out>
struct Swiglu {
  View<const float> gate_up;
  View<Out> out;
  __device__ void operator()(int64_t r, int64_t c) const {
    store(out.at(r, c), swiglu_of(gate_up, r, c, out.cols));
  }
};

__global__ void __launch_bounds__(kBlock) swiglu_row_f8(View<const float> gate_up, F8Room out) {
  const int64_t r = blockIdx.x;
  write_f8_row(out, r, [&](int64_t c) { return swiglu_of(gate_up, r, c, out.cols); });
}

template <class T>
struct GatherRows {
  View<const T> src;
  View<T> dst;
  const int32_t* index;
  __device__ void operator()(int64_t r, int64_t c) const { *dst.at(r, c) = *src.at(index[r], c); }
};

template <class In, class Out>
struct Embed {
  View<const In> table;
  View<Out> out;
  const int32_t* ids;
  __device__ void operator()(int64_t r, int64_t c) const {
    store(out.at(r, c), load(table.at(ids[r], c)));
  }
};

template <class Out>
struct EmbedF8 {
  View<const uint8_t> table;
  const float* scales;
  View<Out> out;
  const int32_t* ids;
  __device__ void operator()(int64_t r, int64_t c) const {
    const int32_t id = ids[r];
    store(out.at(r, c), scales[id] * f8_e4m3_to_float(*table.at(id, c)));
  }
};

// An element is a pair of one head: columns in units of half a head.
struct Rope {
  View<float> x;
  View<const float> cos_sin;
  int64_t half;
  bool adjacent;
  __device__ void operator()(int64_t r, int64_t pair) const {
    const int64_t i = pair % half, head = pair / half * 2 * half;
    float* a = x.at(r, head + (adjacent ? 2 * i : i));
    float* b = adjacent ? a + 1 : a + half;
    const float cos = *cos_sin.at(r, i), sin = *cos_sin.at(r, half + i);
    const float first = *a, second = *b;
    *a = first * cos - second * sin;
    *b = first * sin + second * cos;
  }
};

// What row r is times, before its weights.
__device__ float norm_of(const View<const float>& x, int64_t r, float eps) {
  float squares = 0;
  for (int64_t c = threadIdx.x; c < x.cols; c += kBlock) {
    const float value = *x.at(r, c);
    squares += value * value;
  }
  const float mean = device::block_sum(squares) / static_cast<float>(x.cols);
  return 1 / sqrtf(mean + eps);
}

template <class Out>
__global__ void __launch_bounds__(kBlock)
    rms_norm_row(View<const float> x, View<Out> out, const float* weight, float eps) {
  const int64_t r = blockIdx.x;
  const float scale = norm_of(x, r, eps);
  for (int64_t c = threadIdx.x; c < x.cols; c += kBlock) {
    store(out.at(r, c), *x.at(r, c) * scale * weight[c]);
  }
}

__global__ void __launch_bounds__(kBlock)
    rms_norm_row_f8(View<const float> x, F8Room out, const float* weight, float eps) {
  const int64_t r = blockIdx.x;
  const float scale = norm_of(x, r, eps);
  write_f8_row(out, r, [&](int64_t c) { return *x.at(r, c) * scale * weight[c]; });
}

}  // namespace

template <>
void embed<CudaQueue>(CudaQueue& queue, Tensor out, const WeightSource& table,
                      std::span<const int32_t> ids) {
  ANNULUS_CHECK(out.cols == table.cols && out.rows == static_cast<int64_t>(ids.size()), out.rows,
                " x ", out.cols, ", table ", table.cols, ", ids ", ids.size());
  if (table.format == WeightFormat::kF8E4M3) {
    const View<const uint8_t> codes = {
        reinterpret_cast<const uint8_t*>(table.data + table.first_col), table.rows, table.cols,
        table.row_stride_bytes};
    with_type(out.dtype, [&]<class Out>(Out) {
      for_each(queue, out.rows, out.cols,
               EmbedF8<Out>{codes, reinterpret_cast<const float*>(table.row_scales), view<Out>(out),
                            ids.data()});
    });
    return;
  }
  ANNULUS_CHECK(table.format == WeightFormat::kF32 || table.format == WeightFormat::kBF16,
                "a table on a GPU is f32, bf16 or F8");
  const DType in = table.format == WeightFormat::kF32 ? DType::kF32 : DType::kBF16;
  const ConstTensor rows = {table.data + table.first_col * size_bytes(in), in, table.rows,
                            table.cols, table.row_stride_bytes / size_bytes(in)};
  with_type(in, [&]<class In>(In) {
    with_type(out.dtype, [&]<class Out>(Out) {
      for_each(queue, out.rows, out.cols,
               Embed<In, Out>{view<const In>(rows), view<Out>(out), ids.data()});
    });
  });
}

template <>
void rms_norm<CudaQueue>(CudaQueue& queue, CudaInput out, ConstTensor x, const float* weight,
                         float eps) {
  ANNULUS_CHECK(x.dtype == DType::kF32);
  const auto enqueue = [&](auto kernel, const auto& to) {
    check_same_shape(to, x);
    launch(queue, {blocks_for(x.rows, 1)}, {kBlock}, kernel, view<const float>(x), to, weight, eps);
  };
  if (out.is_f8()) return enqueue(rms_norm_row_f8, out.f8);
  with_type(out.tensor.dtype,
            [&]<class Out>(Out) { enqueue(rms_norm_row<Out>, view<Out>(out.tensor)); });
}

template <>
void rope<CudaQueue>(CudaQueue& queue, Tensor x, ConstTensor cos_sin, int32_t head_dim,
                     RopePairing pairing) {
  ANNULUS_CHECK(x.dtype == DType::kF32 && cos_sin.dtype == DType::kF32);
  ANNULUS_CHECK(head_dim > 0 && head_dim % 2 == 0 && x.cols % head_dim == 0 &&
                    cos_sin.cols == head_dim && cos_sin.rows == x.rows,
                x.rows, " x ", x.cols, ", head_dim ", head_dim, ", cos_sin ", cos_sin.rows, " x ",
                cos_sin.cols);
  for_each(queue, x.rows, x.cols / 2,
           Rope{view<float>(x), view<const float>(cos_sin), head_dim / 2,
                pairing == RopePairing::kAdjacent});
}

template <>
void swiglu<CudaQueue>(CudaQueue& queue, CudaInput out, ConstTensor gate_up) {
  ANNULUS_CHECK(gate_up.dtype == DType::kF32);
  const auto check = [&](const auto& to) {
    ANNULUS_CHECK(gate_up.rows == to.rows && gate_up.cols == 2 * to.cols, gate_up.rows, " x ",
                  gate_up.cols, ", out ", to.rows, " x ", to.cols);
  };
  const auto from = view<const float>(gate_up);
  if (out.is_f8()) {
    check(out.f8);
    launch(queue, {blocks_for(from.rows, 1)}, {kBlock}, swiglu_row_f8, from, out.f8);
    return;
  }
  const Tensor& to = out.tensor;
  check(to);
  with_type(to.dtype, [&]<class Out>(Out) {
    for_each(queue, to.rows, to.cols, Swiglu<Out>{from, view<Out>(to)});
  });
}

template <>
void add<CudaQueue>(CudaQueue& queue, Tensor x, ConstTensor y) {
  ANNULUS_CHECK(x.dtype == DType::kF32 && y.dtype == DType::kF32);
  check_same_shape(x, y);
  for_each(queue, x.rows, x.cols, Add{view<float>(x), view<const float>(y)});
}

template <>
void convert<CudaQueue>(CudaQueue& queue, Tensor out, ConstTensor x) {
  check_same_shape(out, x);
  with_type(x.dtype, [&]<class In>(In) {
    with_type(out.dtype, [&]<class Out>(Out) {
      for_each(queue, x.rows, x.cols, Convert<In, Out>{view<const In>(x), view<Out>(out)});
    });
  });
}

template <>
void gather_rows<CudaQueue>(CudaQueue& queue, Tensor dst, ConstTensor src,
                            std::span<const int32_t> index) {
  ANNULUS_CHECK(dst.dtype == src.dtype && dst.cols == src.cols &&
                    dst.rows == static_cast<int64_t>(index.size()),
                dst.rows, " x ", dst.cols, " of ", src.cols, ", index ", index.size());
  with_type(dst.dtype, [&]<class T>(T) {
    for_each(queue, dst.rows, dst.cols,
             GatherRows<T>{view<const T>(src), view<T>(dst), index.data()});
  });
}

}  // namespace annulus::kernels
