// SPDX-License-Identifier: Apache-2.0
// Weights of linear layers: where they lie in a file (WeightSource, a view of mapped memory, sliced
// for tensor parallelism) and how a device holds them (PackedMatrix). Block formats are GGUF's:
// Q8_0 and Q4_* have one scale for 32 weights of a row, Q6_K for 16 of a super-block of 256. Q8_0,
// Q4_0 and Q4_1 stay quantised in a PackedMatrix under Precision::kDefault (1.06, 0.56 and 0.63
// bytes a weight); F16, BF16, F8 and Q6_K become bf16 (2 bytes); F32 becomes bf16. Precision::kF32
// dequantises everything to fp32 (4 bytes): the strong oracle. Packing runs once, at load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>

#include "kernels/core/tensor.h"

namespace annulus::kernels {

class CpuQueue;

enum class WeightFormat : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ6_K, kF8E4M3 };
enum class Precision : uint8_t { kDefault, kF32 };

struct WeightBlock {
  int32_t weights;  // per block, along a row
  int32_t bytes;
};
constexpr WeightBlock block_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return {1, 4};
    case WeightFormat::kF16: return {1, 2};
    case WeightFormat::kBF16: return {1, 2};
    case WeightFormat::kQ8_0: return {32, 34};  // half d; int8 q[32]
    case WeightFormat::kQ4_0: return {32, 18};  // half d; nibbles q[16]: w = d * (q - 8)
    case WeightFormat::kQ4_1: return {32, 20};  // half d, m; nibbles q[16]: w = d * q + m
    case WeightFormat::kQ6_K: return {256, 210};
    case WeightFormat::kF8E4M3: return {1, 1};
  }
  return {1, 4};
}

// rows x cols weights of a larger matrix [out features, in features] stored by rows: row r starts
// at data + r * row_stride_bytes, and the view begins at element first_col of it. Slices of rows
// and columns are views too.
struct WeightSource {
  WeightFormat format = WeightFormat::kF32;
  const std::byte* data = nullptr;
  int64_t rows = 0, cols = 0, first_col = 0, row_stride_bytes = 0;
  // F8: a float a row, which its weights are times; may be unaligned. Null: none.
  const std::byte* row_scales = nullptr;
  // F8: no row of inputs is scaled as if it held more than this, where inputs become F8 too.
  float input_bound = std::numeric_limits<float>::infinity();

  WeightSource slice_rows(int64_t first, int64_t count) const {
    WeightSource s = *this;
    if (data != nullptr) s.data += first * row_stride_bytes;  // null: a shape without weights
    if (row_scales != nullptr) s.row_scales += first * static_cast<int64_t>(sizeof(float));
    s.rows = count;
    return s;
  }
  WeightSource slice_cols(int64_t first, int64_t count) const {
    WeightSource s = *this;
    s.first_col += first;
    s.cols = count;
    return s;
  }
};

// out[cols] = row r of source, exactly as the format defines it (float arithmetic of the format's
// own scales).
void dequantise_row(const WeightSource& source, int64_t r, float* out);

// How a GPU holds these sources, stacked along n: kF32 under Precision::kF32; kF8E4M3, a scale a
// row, where all of them are that, with one input bound, and n and k are multiples of 16 (what
// tensor cores multiply); else kBF16.
WeightFormat format_on_gpu(std::span<const WeightSource> sources, Precision precision);
int64_t bytes_on_gpu(std::span<const WeightSource> sources, Precision precision);

// A packed [n, k] matrix: y[n] = sum_k w[n, k] x[k]. Panels of kPanel consecutive outputs are
// contiguous ("granules"), so that a slice of outputs at multiples of kPanel is a view. Move-only
// owner; the layout belongs to the backend.
class PackedMatrix {
 public:
  static constexpr int64_t kPanel = 32;
  // Sources are stacked along n (fused QKV, gate and up); all have the same cols. Where their
  // formats differ, or a column slice does not fall on a block edge, the wide format of the
  // precision is used instead. With a queue, on its threads.
  static PackedMatrix pack(std::span<const WeightSource> sources, Precision precision,
                           CpuQueue* queue = nullptr);
  // As other queues' matrices are loaded.
  static PackedMatrix load(CpuQueue& queue, std::span<const WeightSource> sources,
                           Precision precision) {
    return pack(sources, precision, &queue);
  }

  // As load() makes it, save for its contents: for weights that another rank has packed.
  static PackedMatrix room(std::span<const WeightSource> sources, Precision precision);
  std::span<std::byte> contents() { return {data_.get(), static_cast<size_t>(bytes_)}; }
  std::span<const std::byte> contents() const { return {data_.get(), static_cast<size_t>(bytes_)}; }

  // The rows that it multiplies, in this room for them.
  Tensor input(Tensor room) const { return room; }

  // What pack() would hold.
  static int64_t bytes_of(std::span<const WeightSource> sources, Precision precision);

  PackedMatrix() = default;
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  WeightFormat format() const { return format_; }  // as held: kF32, kBF16, kQ8_0, kQ4_0 or kQ4_1
  int64_t bytes() const { return bytes_; }         // memory held
  const std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  WeightFormat format_ = WeightFormat::kF32;
  int64_t n_ = 0, k_ = 0, bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace annulus::kernels
