// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/matrix.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kPieceBytes = int64_t{32} << 20;    // of rows on their way to the device
constexpr auto kPatience = std::chrono::seconds(60);  // for one piece

}  // namespace

CudaMatrix CudaMatrix::load(CudaQueue& queue, std::span<const WeightSource> sources,
                            Precision precision) {
  CudaMatrix out;
  out.dtype_ = precision == Precision::kF32 ? DType::kF32 : DType::kBF16;
  ANNULUS_CHECK(!sources.empty(), "no weights");
  out.k_ = sources[0].cols;
  for (const WeightSource& source : sources) {
    ANNULUS_CHECK(source.cols == out.k_, source.cols, " inputs beside ", out.k_);
    out.n_ += source.rows;
  }
  out.memory_ = CudaQueue::Memory(out.bytes(), " of weights");

  const int64_t row_bytes = out.k_ * size_bytes(out.dtype_);
  const int64_t piece_rows = std::max(kPieceBytes / row_bytes, int64_t{1});
  const auto k = static_cast<size_t>(out.k_);
  std::vector<float> values(k);
  std::vector<std::byte> piece;
  std::byte* to = out.memory_.data();
  for (const WeightSource& source : sources) {
    for (int64_t first = 0; first < source.rows; first += piece_rows) {
      const int64_t rows = std::min(piece_rows, source.rows - first);
      piece.resize(static_cast<size_t>(rows * row_bytes));
      for (int64_t r = 0; r < rows; ++r) {
        std::byte* row = piece.data() + r * row_bytes;
        if (out.dtype_ == DType::kF32) {
          dequantise_row(source, first + r, reinterpret_cast<float*>(row));
          continue;
        }
        dequantise_row(source, first + r, values.data());
        std::transform(values.begin(), values.end(), reinterpret_cast<bf16*>(row), to_bf16);
      }
      check_cuda(
          cudaMemcpyAsync(to, piece.data(), piece.size(), cudaMemcpyHostToDevice, queue.stream()),
          "weights");
      queue.finish(std::chrono::steady_clock::now() + kPatience);
      to += rows * row_bytes;
    }
  }
  return out;
}

}  // namespace annulus::kernels
