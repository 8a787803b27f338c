// SPDX-License-Identifier: Apache-2.0
#include "bench/gemm.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "bench/command_line.h"
#include "bench/gemm_onednn.h"
#include "bench/peaks.h"
#include "kernels/core/memory.h"
#include "kernels/ops.h"

namespace annulus::bench {
namespace {

using namespace kernels;  // NOLINT: a benchmark of that layer

struct Options {
  int threads = 1;
  double seconds = 0.1;
  std::string isa = "auto";
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 32, 64, 512, 2048};
  std::vector<std::string> formats = {"f32", "bf16", "q8_0", "q4_0", "q4_1"};
  std::vector<int64_t> only_k;
};

struct Layer {
  int64_t k, n;
};
constexpr Layer kLayers[] = {{576, 576}, {576, 960}, {576, 3072}, {1536, 576}, {2048, 2048}};

struct Format {
  const char* name;
  WeightFormat source;
  Precision precision;
};
constexpr Format kFormats[] = {{"f32", WeightFormat::kF32, Precision::kF32},
                               {"bf16", WeightFormat::kBF16, Precision::kDefault},
                               {"q8_0", WeightFormat::kQ8_0, Precision::kDefault},
                               {"q4_0", WeightFormat::kQ4_0, Precision::kDefault},
                               {"q4_1", WeightFormat::kQ4_1, Precision::kDefault}};

struct Time {
  double min_us = 0, median_us = 0;
};

// Repeats body for about the given time, at least 5 times.
Time measure(double seconds, const std::function<void()>& body) {
  using Clock = std::chrono::steady_clock;
  body();
  std::vector<double> us;
  auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (us.size() < 5 || Clock::now() < end) {
    auto start = Clock::now();
    body();
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::sort(us.begin(), us.end());
  return {us.front(), us[us.size() / 2]};
}

// Random file bytes. Halves of block formats lie in +-[2^-7, 2^-6).
struct Weights {
  Weights(const Format& format, Layer layer) {
    WeightBlock block = block_of(format.source);
    bytes.resize(static_cast<size_t>(layer.n * layer.k / block.weights * block.bytes));
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    if (block.weights > 1) {
      for (auto& b : bytes) b = static_cast<std::byte>(random());
      auto halves = static_cast<size_t>(format.source == WeightFormat::kQ4_1 ? 2 : 1);
      for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(block.bytes))
        for (size_t h = 0; h < halves; ++h)
          bytes[at + 2 * h + 1] = (bytes[at + 2 * h + 1] & std::byte{0x83}) | std::byte{0x20};
    } else if (block.bytes == 4) {
      for (size_t i = 0; i < bytes.size() / 4; ++i)
        reinterpret_cast<float*>(bytes.data())[i] = normal(random);
    } else {
      for (size_t i = 0; i < bytes.size() / 2; ++i)
        reinterpret_cast<bf16*>(bytes.data())[i] = to_bf16(normal(random));
    }
    source = {
        format.source, bytes.data(), layer.n, layer.k, 0, layer.k / block.weights * block.bytes};
  }
  std::vector<std::byte> bytes;
  WeightSource source;
};

// Largest |out - sum x w| / sum |x| |w| over all outputs of up to two rows.
double worst_error(std::span<const float> out, std::span<const float> x, int64_t rows,
                   const WeightSource& w) {
  double worst = 0;
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t n = 0; n < w.rows; ++n) {
    dequantise_row(w, n, row.data());
    for (int64_t m = 0; m < rows; m += std::max(rows - 1, int64_t{1})) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < w.cols; ++k) {
        double product = static_cast<double>(x[static_cast<size_t>(m * w.cols + k)]) *
                         static_cast<double>(row[static_cast<size_t>(k)]);
        sum += product;
        size += std::abs(product);
      }
      double value = out[static_cast<size_t>(m * w.rows + n)];
      worst = std::max(worst, std::abs(value - sum) / size);
    }
  }
  return worst;
}

void run_layer(CpuQueue& queue, const Options& options, const Peaks& peaks, const Format& format,
               Layer layer) {
  constexpr int64_t kStreamed = int64_t{128} << 20;  // several times the last-level cache
  Weights weights(format, layer);
  std::vector<PackedMatrix> copies;
  copies.push_back(PackedMatrix::pack({&weights.source, 1}, format.precision));
  const int64_t weight_bytes = copies.front().bytes();
  bool streams =
      std::any_of(options.rows.begin(), options.rows.end(), [](int64_t m) { return m <= 16; });
  while (streams && static_cast<int64_t>(copies.size()) * weight_bytes < kStreamed)
    copies.push_back(PackedMatrix::pack({&weights.source, 1}, format.precision));
  const bool dot = queue.isa() >= CpuIsa::kAvx512Bf16 && format.precision == Precision::kDefault;
  for (int64_t m : options.rows) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    // Aligned as the engine's scratch.
    const AlignedBytes x_memory = allocate_aligned(m * layer.k * 4),
                       out_memory = allocate_aligned(m * layer.n * 4);
    const std::span x(reinterpret_cast<float*>(x_memory.get()), static_cast<size_t>(m * layer.k));
    const std::span out(reinterpret_cast<float*>(out_memory.get()),
                        static_cast<size_t>(m * layer.n));
    for (float& v : x) v = normal(random);
    Tensor out_view = matrix(out.data(), m, layer.n);
    ConstTensor x_view = matrix(static_cast<const float*>(x.data()), m, layer.k);
    const size_t used = m <= 16 ? copies.size() : 1;
    size_t next = 0;
    Time time =
        measure(options.seconds, [&] { matmul(queue, out_view, x_view, copies[next++ % used]); });
    double flops = 2.0 * static_cast<double>(m * layer.k * layer.n);
    double gflops = flops / time.min_us * 1e-3;
    double gbytes = static_cast<double>(weight_bytes) / time.min_us * 1e-3;
    std::printf("%5ld %5ld %5ld %5s %10.1f %10.1f %8.1f %5.0f%% %7.1f %5.0f%%  %8.1e", m, layer.k,
                layer.n, format.name, time.min_us, time.median_us, gflops,
                100 * gflops / (dot ? peaks.bf16_gflops : peaks.fp32_gflops), gbytes,
                100 * gbytes / peaks.read_gbytes, worst_error(out, x, m, weights.source));
    // Block formats are set beside bf16, which is what oneDNN could hold.
    bool low = format.precision == Precision::kDefault;
    int64_t dnnl_copies = m <= 16 ? kStreamed / (layer.k * layer.n * (low ? 2 : 4)) + 1 : 1;
    if (auto body = onednn_matmul(queue.threads(), low, m, layer.k, layer.n, dnnl_copies)) {
      Time theirs = measure(options.seconds, body);
      std::printf(" %10.1f %6.2f", theirs.min_us, theirs.min_us / time.min_us);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace

int bench_gemm(int argc, char** argv) {
  CLI::App app{"Linear layers: matmul() against the peaks of this machine, measured in this run",
               "annulus-bench gemm"};
  Options options;
  app.add_option("--threads", options.threads, "threads of the queue")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--cpu-isa", options.isa, "portable, avx2, avx512, avx512-bf16, amx or auto")
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "measured time per row of the table")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--rows", options.rows, "numbers of rows (tokens)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--formats", options.formats, "weight formats")
      ->delimiter(',')
      ->check(CLI::IsMember({"f32", "bf16", "q8_0", "q4_0", "q4_1"}))
      ->capture_default_str();
  app.add_option("--k", options.only_k, "only layers with these numbers of inputs")->delimiter(',');
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  const auto isa = parse_cpu_isa(options.isa);
  if (!isa.ok()) return report("gemm", isa.status());
  CpuQueue queue(options.threads, *isa);
  const Peaks peaks = measure_peaks(queue);
  std::printf(
      "gemm: %s, %d thread(s); peaks: fp32 %.1f, bf16 %.1f GFLOP/s, read %.1f GB/s; up to 16 rows "
      "the weights come from memory\nrates from the best time; error relative to sum |x| |w|%s\n",
      name(queue.isa()), queue.threads(), peaks.fp32_gflops, peaks.bf16_gflops, peaks.read_gbytes,
      have_onednn() ? "; oneDNN holds f32 or bf16, ratio > 1: ours is faster" : "");
  std::printf("%5s %5s %5s %5s %10s %10s %8s %6s %7s %6s  %8s%s\n", "M", "K", "N", "w", "us min",
              "median", "GFLOP/s", "%peak", "w GB/s", "%read", "max err",
              have_onednn() ? "     oneDNN  ratio" : "");
  for (const Format& format : kFormats)
    for (Layer layer : kLayers) {
      auto chosen = [](const auto& list, const auto& value) {
        return std::find(list.begin(), list.end(), value) != list.end();
      };
      if (!chosen(options.formats, format.name)) continue;
      if (!options.only_k.empty() && !chosen(options.only_k, layer.k)) continue;
      run_layer(queue, options, peaks, format, layer);
    }
  return 0;
}

}  // namespace annulus::bench
