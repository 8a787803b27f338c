// SPDX-License-Identifier: Apache-2.0
#include "bench/attention.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/command_line.h"
#include "bench/peaks.h"
#include "kernels/attention.h"
#include "kernels/cpu/queue.h"
#include "kernels/reference/attention.h"

namespace annulus::bench {
namespace {

using namespace kernels;  // NOLINT: all of this file is about them

struct Case {
  int32_t n_new, n_cached, heads, kv_heads, head_dim;
  DType dtype;
};

double now_us() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void fill(std::vector<std::byte>& bytes, DType dtype, std::mt19937& random) {
  std::normal_distribution<float> normal;
  // Values repeat after a prime number of draws: drawing all would take longer than attending.
  std::vector<float> values(65537);
  for (float& x : values) x = normal(random);
  const size_t n = bytes.size() / static_cast<size_t>(size_bytes(dtype));
  for (size_t i = 0; i < n; ++i) {
    const float x = values[i % values.size()];
    if (dtype == DType::kF32)
      reinterpret_cast<float*>(bytes.data())[i] = x;
    else
      reinterpret_cast<bf16*>(bytes.data())[i] = to_bf16(x);
  }
}

// Largest |o - reference| over a sample of rows.
double worst_error(const ConstTensor& q, const Segment& segment, const KvFormat& format,
                   double scale, const Partial& acc) {
  double worst = 0;
  const int32_t step = std::max(1, segment.q_count / 4);
  for (int32_t r = 0; r < segment.q_count; r += step) {
    Segment one = segment;
    one.q_first = 0;
    one.q_count = 1;
    one.q_positions += r;
    ReferencePartial want(1, acc.heads, acc.head_dim);
    reference_attend(q.slice_rows(r, 1), {&one, 1}, format, scale, want);
    for (size_t i = 0; i < want.o.size(); ++i) {
      const float got = acc.o[static_cast<size_t>(r) * want.o.size() + i];
      worst = std::max(worst, std::abs(static_cast<double>(got) - want.o[i]));
    }
  }
  return worst;
}

void run(CpuQueue& queue, const Case& c, double seconds, const Peaks& peaks) {
  const int32_t n_keys = c.n_new + c.n_cached;
  const KvFormat format{c.dtype, c.kv_heads, c.head_dim, 64};
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int32_t n_pages = (n_keys + format.page_tokens - 1) / format.page_tokens;
  std::mt19937 random(1);
  std::vector<std::byte> q(static_cast<size_t>(c.n_new * q_width * size_bytes(c.dtype)));
  std::vector<std::byte> cache(static_cast<size_t>(n_pages * format.page_bytes()));
  fill(q, c.dtype, random);
  fill(cache, c.dtype, random);
  std::vector<int32_t> pages(static_cast<size_t>(n_pages)), positions(static_cast<size_t>(n_keys));
  std::iota(pages.begin(), pages.end(), 0);
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<float> o(static_cast<size_t>(c.n_new * q_width));
  std::vector<float> lse(static_cast<size_t>(c.n_new * c.heads));
  const Partial acc{o.data(), lse.data(), c.n_new, c.heads, c.head_dim};
  const Segment segment{0,
                        c.n_new,
                        positions.data() + c.n_cached,
                        {cache.data(), pages.data(), positions.data(), n_keys}};
  const ConstTensor queries{q.data(), c.dtype, c.n_new, q_width, q_width};
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  std::vector<double> us;
  double total = 0;
  for (int i = 0; i < 4 || (total < seconds * 1e6 && i < 10000); ++i) {
    clear(queue, acc);
    const double start = now_us();
    attend(queue, queries, {&segment, 1}, format, scale, acc);
    const double took = now_us() - start;
    if (i > 0) us.push_back(took), total += took;  // the first one warms up
  }
  std::sort(us.begin(), us.end());
  const double median = us[us.size() / 2], p95 = us[us.size() * 95 / 100];
  const double pairs = double(c.n_new) * c.n_cached + 0.5 * c.n_new * (c.n_new + 1.0);
  const double gflops = 4 * pairs * c.heads * c.head_dim / median * 1e-3;
  const double gbytes = double(n_keys) * static_cast<double>(format.row_bytes()) / median * 1e-3;
  const bool pairs_dot = c.dtype == DType::kBF16 && queue.isa() >= CpuIsa::kAvx512Bf16;
  const double error = worst_error(queries, segment, format, static_cast<double>(scale), acc);
  std::printf("%6d %7d %3d/%-2d %4d %5s %11.1f %11.1f %11.1f %9.1f %6.1f %8.2f %6.1f %9.1e\n",
              c.n_new, c.n_cached, c.heads, c.kv_heads, c.head_dim, name(c.dtype), us.front(),
              median, p95, gflops,
              100 * gflops / (pairs_dot ? peaks.bf16_gflops : peaks.fp32_gflops), gbytes,
              100 * gbytes / peaks.read_gbytes, error);
  std::fflush(stdout);
}

}  // namespace

int bench_attention(int argc, char** argv) {
  CLI::App app{"Attention on one CPU queue: time, rate, error", "annulus-bench attention"};
  int threads = 1;
  double seconds = 0.5;
  std::string isa_text = "auto";
  app.add_option("--threads", threads, "threads of the queue")->check(CLI::Range(1, 1024));
  app.add_option("--cpu-isa", isa_text, "portable, avx2, avx512, avx512-bf16, amx or auto");
  app.add_option("--seconds", seconds, "measured time per row")->check(CLI::Range(0.0, 3600.0));
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  const auto isa = parse_cpu_isa(isa_text);
  if (!isa.ok()) return report("attention", isa.status());
  CpuQueue queue(threads, *isa);
  const Peaks peaks = measure_peaks(queue);
  std::printf("attention: %s, %d thread(s); peaks: fp32 %.0f, bf16 %.0f GFLOP/s, read %.1f GB/s\n",
              name(queue.isa()), queue.threads(), peaks.fp32_gflops, peaks.bf16_gflops,
              peaks.read_gbytes);
  std::printf("%6s %7s %6s %4s %5s %11s %11s %11s %9s %6s %8s %6s %9s\n", "T", "cached", "heads",
              "d", "dtype", "us min", "median", "p95", "GFLOP/s", "%peak", "KV GB/s", "%read",
              "max err");
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    for (auto [n_new, n_cached] : {std::pair{512, 0},
                                   {2048, 0},
                                   {8192, 0},
                                   {512, 8192},
                                   {64, 8192},
                                   {16, 8192},
                                   {4, 8192},
                                   {2, 8192},
                                   {1, 512},
                                   {1, 8192},
                                   {1, 65536}})
      run(queue, {n_new, n_cached, 9, 3, 64, dtype}, seconds, peaks);
    for (auto [n_new, n_cached] : {std::pair{2048, 0}, {1, 8192}})
      run(queue, {n_new, n_cached, 32, 8, 128, dtype}, seconds, peaks);
  }
  return 0;
}

}  // namespace annulus::bench
