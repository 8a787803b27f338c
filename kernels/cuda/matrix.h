// SPDX-License-Identifier: Apache-2.0
// CudaMatrix: the weights of a linear layer as a GPU holds them: [n, k] by rows, f32 or bf16, in
// device memory. Precision::kDefault holds bf16 whatever the file's format (quantised blocks are
// expanded: tensor cores read bf16), Precision::kF32 holds f32. Move-only owner; loaded once, by
// the thread that owns the queue. Errors: DeviceError (memory).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/core/dtype.h"
#include "kernels/cuda/queue.h"
#include "kernels/weight.h"

namespace annulus::kernels {

class CudaMatrix {
 public:
  // Sources are stacked along n; all have the same cols. Reads each source row once; returns when
  // the device has it all.
  static CudaMatrix load(CudaQueue& queue, std::span<const WeightSource> sources,
                         Precision precision);

  DType dtype() const { return dtype_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t bytes() const { return n_ * k_ * size_bytes(dtype_); }
  const std::byte* data() const { return memory_.data(); }  // on the device
  // As a table whose rows embed() looks up.
  WeightSource rows() const {
    return {dtype_ == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16,
            memory_.data(),
            n_,
            k_,
            0,
            k_ * size_bytes(dtype_)};
  }

 private:
  DType dtype_ = DType::kF32;
  int64_t n_ = 0, k_ = 0;
  CudaQueue::Memory memory_;
};

}  // namespace annulus::kernels
