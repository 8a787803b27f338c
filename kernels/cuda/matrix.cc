// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/matrix.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/core/math.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kTaskBytes = int64_t{256} << 10;    // of rows that one thread converts at a time
constexpr int kMostThreads = 8;                       // a host's ranks load side by side
constexpr auto kPatience = std::chrono::seconds(60);  // for one piece

// A matrix that is one task is converted by the caller alone.
int threads_for(int64_t bytes) {
  const auto cores = static_cast<int64_t>(std::thread::hardware_concurrency());
  return static_cast<int>(std::clamp(ceil_div(bytes, kTaskBytes), int64_t{1},
                                     std::clamp<int64_t>(cores, 1, kMostThreads)));
}

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
  const int64_t piece_rows = std::max(kPieceBytes / row_bytes, int64_t{1});
  const int64_t task_rows = std::max(kTaskBytes / row_bytes, int64_t{1});
  const auto soon = [] { return std::chrono::steady_clock::now() + kPatience; };
  ThreadPool pool(threads_for(out.n_ * row_bytes));
  std::vector<std::vector<float>> values(static_cast<size_t>(pool.threads()),
                                         std::vector<float>(static_cast<size_t>(out.k_)));
  std::byte* to = out.memory_.data();
  CudaQueue::Ticket flying;  // the piece before
  for (const WeightSource& source : sources) {
    for (int64_t first = 0; first < source.rows; first += piece_rows) {
      const int64_t rows = std::min(piece_rows, source.rows - first);
      std::byte* const piece = queue.stage(rows * row_bytes);
      const auto fill = [&](int64_t task, int thread) {
        const int64_t end = std::min((task + 1) * task_rows, rows);
        for (int64_t r = task * task_rows; r < end; ++r)
          convert_row(source, first + r, out.format_, values[static_cast<size_t>(thread)],
                      piece + r * row_bytes);
      };
      pool.run(ceil_div(rows, task_rows), fill, {});
      queue.send(to, piece, rows * row_bytes);
      to += rows * row_bytes;
      // While this one flies, the next is filled in the pinned memory of the one before.
      const CudaQueue::Ticket sent = queue.close();
      queue.finish(flying, soon());
      flying = sent;
    }
  }
  if (out.scale_bytes() > 0) {
    for (const WeightSource& source : sources) {
      const std::vector<float> ones(
          source.row_scales == nullptr ? static_cast<size_t>(source.rows) : 0, 1.0f);
      queue.write(to, ones.empty() ? static_cast<const void*>(source.row_scales) : ones.data(),
                  source.rows * 4);
      to += source.rows * 4;
    }
  }
  queue.finish(soon());
  return out;
}

}  // namespace annulus::kernels
