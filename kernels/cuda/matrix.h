// SPDX-License-Identifier: Apache-2.0
// CudaMatrix: the weights of a linear layer as a GPU holds them: [n, k] by rows in device memory,
// in the format that format_on_gpu() says: f32, bf16 (quantised blocks are expanded: tensor cores
// read bf16), or F8 with a scale a row. Move-only owner; loaded once, by the thread that owns the
// queue. Errors: DeviceError (memory).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/f8.h"
#include "kernels/cuda/queue.h"
#include "kernels/weight.h"

namespace annulus::kernels {

class CudaMatrix {
 public:
  // Of rows on their way to the device: two such pieces of pinned memory, the queue's steps', of
  // which threads fill one while the other flies.
  static constexpr int64_t kPieceBytes = int64_t{8} << 20;
  // Sources are stacked along n; all have the same cols. Reads each source row once; returns when
  // the device has it all.
  static CudaMatrix load(CudaQueue& queue, std::span<const WeightSource> sources,
                         Precision precision);
  // As load() makes it, save for its contents: for weights that another rank has.
  static CudaMatrix room(std::span<const WeightSource> sources, Precision precision);
  // What load() would hold.
  static int64_t bytes_of(std::span<const WeightSource> sources, Precision precision) {
    return bytes_on_gpu(sources, precision);
  }

  WeightFormat format() const { return format_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t bytes() const { return n_ * row_bytes() + scale_bytes(); }
  const std::byte* data() const { return memory_.data(); }  // on the device
  // F8: [n] on the device, what the weights of a row are times; and WeightSource::input_bound.
  const float* row_scales() const { return reinterpret_cast<const float*>(scales()); }
  float input_bound() const { return input_bound_; }
  // In this room of f32, one row after the other, the rows that it multiplies as tensor cores read
  // them: in its own format. F8: codes, then scales.
  CudaInput input(Tensor room) const;
  // Weights, then scales.
  std::span<std::byte> contents() { return {memory_.data(), static_cast<size_t>(bytes())}; }
  std::span<const std::byte> contents() const {
    return {memory_.data(), static_cast<size_t>(bytes())};
  }
  // As a table whose rows embed() looks up; all of it on the device.
  WeightSource rows() const {
    return {format_, memory_.data(), n_, k_, 0, row_bytes(), scales(), input_bound_};
  }

 private:
  int64_t row_bytes() const { return k_ * block_of(format_).bytes; }
  int64_t scale_bytes() const { return format_ == WeightFormat::kF8E4M3 ? n_ * 4 : 0; }
  // Behind the weights, whose number is a multiple of 256 in F8; null: none.
  const std::byte* scales() const {
    return scale_bytes() > 0 ? memory_.data() + n_ * row_bytes() : nullptr;
  }

  WeightFormat format_ = WeightFormat::kF32;
  int64_t n_ = 0, k_ = 0;
  float input_bound_ = 0;
  CudaQueue::Memory memory_;
};

}  // namespace annulus::kernels
