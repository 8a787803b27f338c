// SPDX-License-Identifier: Apache-2.0
#include "bench/peaks.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "bench/peaks_kernels.h"
#include "kernels/core/memory.h"

namespace annulus::bench {
namespace {

using kernels::CpuIsa;
using kernels::CpuQueue;
namespace portable = kernels::portable;
#if defined(__x86_64__)
namespace avx2 = kernels::avx2;
namespace avx512 = kernels::avx512;
namespace avx512_bf16 = kernels::avx512_bf16;
#endif

// Best rate of several runs of work() on every thread; amount: of one thread's work.
template <class Work>
double best_rate(CpuQueue& queue, int runs, double amount, const Work& work) {
  double best = 0;
  for (int run = 0; run < runs; ++run) {
    auto start = std::chrono::steady_clock::now();
    queue.parallel_for(queue.threads(), [&](int64_t index, int) { work(index); });
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, amount * queue.threads() / seconds.count());
  }
  return best * 1e-9;
}

}  // namespace

Peaks measure_peaks(CpuQueue& queue) {
  const kernels::PeakKernels& loops = ANNULUS_SELECT_ISA(queue.isa(), kPeakKernels);
  const auto threads = static_cast<size_t>(queue.threads());
  // Runs of about half a millisecond: some of them are not interrupted on a busy machine.
  constexpr int64_t kIterations = 50'000, kFloats = int64_t{32} << 20, kSlices = 8;
  constexpr int kRuns = 60;
  Peaks peaks;
  struct alignas(64) Line {
    float x[32];
  };
  std::vector<Line> lines(threads);
  auto reset = [&] {
    for (Line& line : lines) std::fill(line.x, line.x + 32, 1e-6f);
  };
  auto of = [&](int64_t index) { return lines[static_cast<size_t>(index)].x; };
  reset();
  peaks.fp32_gflops = best_rate(queue, kRuns, loops.fma_flops * kIterations,
                                [&](int64_t i) { loops.fma(of(i), kIterations); });
  reset();
  if (loops.dot != nullptr)
    peaks.bf16_gflops = best_rate(queue, kRuns, loops.dot_flops * kIterations,
                                  [&](int64_t i) { loops.dot(of(i), kIterations); });
  std::vector<kernels::AlignedBytes> memory(threads);
  for (auto& part : memory) {
    part = kernels::allocate_aligned(kFloats * 4);
    std::fill_n(reinterpret_cast<float*>(part.get()), kFloats, 1.0f);
  }
  constexpr int64_t kSlice = kFloats / kSlices;
  for (int64_t slice = 0; slice < 4 * kSlices; ++slice)
    peaks.read_gbytes =
        std::max(peaks.read_gbytes, best_rate(queue, 1, kSlice * 4.0, [&](int64_t i) {
                   const auto* p = reinterpret_cast<float*>(memory[static_cast<size_t>(i)].get());
                   of(i)[0] = loops.read(p + slice % kSlices * kSlice, kSlice);
                 }));
  return peaks;
}

Peaks measure_peaks(int threads) {
  CpuQueue queue(threads);
  return measure_peaks(queue);
}

}  // namespace annulus::bench
