// SPDX-License-Identifier: Apache-2.0
#include "bench/peaks.h"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

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
namespace amx = kernels::amx;
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

constexpr int64_t kFloats = int64_t{32} << 20, kSlices = 8;  // per thread

std::vector<kernels::AlignedBytes> memory_to_read(int threads) {
  std::vector<kernels::AlignedBytes> memory(static_cast<size_t>(threads));
  for (auto& part : memory) {
    part = kernels::allocate_aligned(kFloats * 4);
    std::fill_n(reinterpret_cast<float*>(part.get()), kFloats, 1.0f);
  }
  return memory;
}

// GB/s of reading all of it once, slice by slice, ascending.
std::vector<double> read_rates(CpuQueue& queue, const std::vector<kernels::AlignedBytes>& memory) {
  const kernels::PeakKernels& loops = ANNULUS_SELECT_ISA(queue.isa(), kPeakKernels);
  constexpr int64_t kSlice = kFloats / kSlices;
  std::vector<double> rates;
  volatile float sink = 0;
  for (int64_t slice = 0; slice < kSlices; ++slice)
    rates.push_back(best_rate(queue, 1, kSlice * 4.0, [&](int64_t i) {
      const auto* p = reinterpret_cast<const float*>(memory[static_cast<size_t>(i)].get());
      sink = loops.read(p + slice * kSlice, kSlice);
    }));
  std::sort(rates.begin(), rates.end());
  return rates;
}

}  // namespace

Peaks measure_peaks(CpuQueue& queue) {
  const kernels::PeakKernels& loops = ANNULUS_SELECT_ISA(queue.isa(), kPeakKernels);
  const auto threads = static_cast<size_t>(queue.threads());
  // Runs of about half a millisecond: some of them are not interrupted on a busy machine.
  constexpr int64_t kIterations = 250'000;
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
  const auto memory = memory_to_read(queue.threads());
  for (int run = 0; run < 4; ++run)
    peaks.read_gbytes = std::max(peaks.read_gbytes, read_rates(queue, memory).back());
  return peaks;
}

Peaks measure_peaks(int threads) {
  CpuQueue queue(threads);
  return measure_peaks(queue);
}

ReadLimit::ReadLimit(int threads) : queue_(threads), memory_(memory_to_read(threads)) {}

double ReadLimit::gbytes() {
  return read_rates(queue_, memory_)[kSlices / 2];
}

namespace {

// Multiply-adds in a fixed time, by each of some pinned processes at once, in GFLOP/s together.
double rate_together(int copies) {
  double total = 0;
  std::vector<int> pipes;
  std::vector<pid_t> children;
  for (int copy = 0; copy < copies; ++copy) {
    int ends[2];
    if (pipe(ends) != 0) return 0;
    pipes.push_back(ends[0]);
    const pid_t child = fork();
    if (child == 0) {
      cpu_set_t cores;
      CPU_ZERO(&cores);
      CPU_SET(static_cast<size_t>(copy), &cores);
      sched_setaffinity(0, sizeof cores, &cores);
      const auto& loops = ANNULUS_SELECT_ISA(kernels::detect_cpu_isa(), kPeakKernels);
      alignas(64) float x[32];
      std::fill(x, x + 32, 1e-6f);
      constexpr int64_t kIterations = 10'000;
      using Clock = std::chrono::steady_clock;
      const auto start = Clock::now();
      double done = 0;
      while (Clock::now() - start < std::chrono::milliseconds(500)) {
        loops.fma(x, kIterations);
        done += loops.fma_flops * kIterations;
      }
      done /= std::chrono::duration<double>(Clock::now() - start).count();
      _exit(write(ends[1], &done, sizeof done) == ssize_t{sizeof done} ? 0 : 1);
    }
    children.push_back(child);
    close(ends[1]);
  }
  for (const int end : pipes) {
    double rate = 0;
    if (read(end, &rate, sizeof rate) == ssize_t{sizeof rate}) total += rate;
    close(end);
  }
  for (const pid_t child : children) waitpid(child, nullptr, 0);
  return total * 1e-9;
}

}  // namespace

double copies_scale(int copies) {
  return rate_together(copies) / rate_together(1);
}

}  // namespace annulus::bench
