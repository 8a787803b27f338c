// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/matrix.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kPieceBytes = int64_t{32} << 20;    // of rows on their way to the device
constexpr auto kPatience = std::chrono::seconds(60);  // for one piece

// Row r of source in the format.
void convert_row(const WeightSource& source, int64_t r, WeightFormat format,
                 std::vector<float>& values, std::byte* to) {
  if (format == source.format) {
    const int64_t each = block_of(format).bytes;
    std::copy_n(source.data + r * source.row_stride_bytes + source.first_col * each,
                source.cols * each, to);
    return;
  }
  if (format == WeightFormat::kF32) {
    dequantise_row(source, r, reinterpret_cast<float*>(to));
    return;
  }
  dequantise_row(source, r, values.data());
  std::transform(values.begin(), values.end(), reinterpret_cast<bf16*>(to), to_bf16);
}

}  // namespace

CudaMatrix CudaMatrix::room(std::span<const WeightSource> sources, Precision precision) {
  ANNULUS_CHECK(!sources.empty(), "no weights");
  CudaMatrix out;
  out.format_ = format_on_gpu(sources, precision);
  out.k_ = sources[0].cols;
  out.input_bound_ = sources[0].input_bound;
  for (const WeightSource& source : sources) {
    ANNULUS_CHECK(source.cols == out.k_, source.cols, " inputs beside ", out.k_);
    out.n_ += source.rows;
  }
  out.memory_ = CudaQueue::Memory(out.bytes(), " of weights");
  return out;
}

CudaInput CudaMatrix::input(Tensor room) const {
  ANNULUS_CHECK(room.dtype == DType::kF32 && room.cols == k_ && room.row_stride == k_, room.cols,
                " inputs, ", room.row_stride, " apart, for ", k_);
  if (format_ == WeightFormat::kBF16) room.dtype = DType::kBF16;
  if (format_ != WeightFormat::kF8E4M3) return room;
  auto* const codes = static_cast<uint8_t*>(room.data);
  return F8Room{codes, reinterpret_cast<float*>(codes + room.rows * k_), room.rows, k_,
                input_bound_};
}

CudaMatrix CudaMatrix::load(CudaQueue& queue, std::span<const WeightSource> sources,
                            Precision precision) {
  CudaMatrix out = room(sources, precision);
  const int64_t row_bytes = out.row_bytes();
  const auto send = [&](std::byte* to, const std::vector<std::byte>& from) {
    check_cuda(
        cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, queue.stream()),
        "weights");
    queue.finish(std::chrono::steady_clock::now() + kPatience);
  };

  const int64_t piece_rows = std::max(kPieceBytes / row_bytes, int64_t{1});
  std::vector<float> values(static_cast<size_t>(out.k_));
  std::vector<std::byte> piece;
  std::byte* to = out.memory_.data();
  for (const WeightSource& source : sources) {
    for (int64_t first = 0; first < source.rows; first += piece_rows) {
      const int64_t rows = std::min(piece_rows, source.rows - first);
      piece.resize(static_cast<size_t>(rows * row_bytes));
      for (int64_t r = 0; r < rows; ++r)
        convert_row(source, first + r, out.format_, values, piece.data() + r * row_bytes);
      send(to, piece);
      to += rows * row_bytes;
    }
  }
  if (out.scale_bytes() == 0) return out;
  piece.clear();
  for (const WeightSource& source : sources) {
    const std::vector<float> ones(
        source.row_scales == nullptr ? static_cast<size_t>(source.rows) : 0, 1.0f);
    const std::byte* const from = source.row_scales == nullptr
                                      ? reinterpret_cast<const std::byte*>(ones.data())
                                      : source.row_scales;
    piece.insert(piece.end(), from, from + source.rows * 4);
  }
  send(to, piece);
  return out;
}

}  // namespace annulus::kernels
