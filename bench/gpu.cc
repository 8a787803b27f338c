// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>

#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/sdpa.h"
#include "kernels/ops.h"
#include "kernels/sampling.h"

namespace annulus::bench {
namespace {

using namespace kernels;  // NOLINT: all of this file is about them
using Clock = std::chrono::steady_clock;

// Values repeat after a prime number of draws: drawing all would take longer than measuring.
std::vector<bf16> random_bf16(size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<bf16> draws(65537), out(count);
  for (bf16& x : draws) x = to_bf16(normal(random));
  for (size_t i = 0; i < count; i += draws.size())
    std::copy_n(draws.data(), std::min(draws.size(), count - i), out.data() + i);
  return out;
}

// Blocks of cuDNN multiply hidden pairs too: with more rows they would take most of the time.
constexpr int64_t kMostBlocks = 16384;

class Bench {
 public:
  Bench(CudaQueue& queue, const GpuBenchOptions& options) : queue_(queue), options_(options) {}

  // Milliseconds of one run: the queue gets enough of them for the launches not to count, at least
  // 20 ms' worth or `most`. A median of fewer repeats where they would take over two seconds.
  double time(const std::function<void()>& run, int most = 50) {
    const auto span = [&](int count) {
      const auto start = Clock::now();
      for (int i = 0; i < count; ++i) run();
      queue_.finish(Clock::now() + std::chrono::seconds(60));
      return std::chrono::duration<double, std::milli>(Clock::now() - start).count() / count;
    };
    span(1);  // algorithms are chosen, scratch grows
    const double once = std::max(span(1), 1e-3);
    const int count = std::clamp(static_cast<int>(20 / once), 1, most);
    const int repeats =
        std::min(options_.repeats, std::max(3, static_cast<int>(2000 / (once * count))));
    std::vector<double> ms;
    ms.reserve(static_cast<size_t>(repeats));
    for (int i = 0; i < repeats; ++i) ms.push_back(span(count));
    std::nth_element(ms.begin(), ms.begin() + repeats / 2, ms.end());
    return ms[static_cast<size_t>(repeats / 2)];
  }

  template <class T>
  CudaMemory to_device(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    CudaMemory memory(bytes);
    queue_.write(memory.data(), values.data(), bytes);
    queue_.finish(Clock::now() + std::chrono::seconds(60));
    return memory;
  }

  int64_t scaled(int64_t size, int64_t least) const {
    return std::max(least, size / options_.scale);
  }

  void copy() {
    const int64_t bytes = scaled(int64_t{1} << 30, 1 << 16);
    const CudaMemory from(bytes), to(bytes);
    queue_.fill(from.data(), std::byte{1}, bytes);
    const double ms = time([&] { queue_.copy(to.data(), from.data(), bytes); });
    copy_gb_s_ = 2e-6 * static_cast<double>(bytes) / ms;
    rows.push_back(
        {"copy within memory, read and write counted", ms, copy_gb_s_, "GB/s", 0, "", ""});
  }

  // x f32 as attention leaves it, weights bf16 or F8; rounding x is part of it, some 8 % of the
  // limit's time. Few rows read what the L2 still holds of the weights: an upper bound below 100
  // MB.
  void gemm(int64_t m, int64_t n, int64_t k, bool is_limit,
            WeightFormat format = WeightFormat::kBF16) {
    const bool f8 = format == WeightFormat::kF8E4M3;
    m = scaled(m, 1);
    n = scaled(n, 64) / 16 * 16;
    k = scaled(k, 64) / 16 * 16;
    // As F8, a bf16's bytes are codes; the pattern of NaN is avoided by clearing a bit of
    // exponents.
    std::vector<bf16> weights = random_bf16(static_cast<size_t>(f8 ? n * k / 2 : n * k));
    if (f8)
      for (bf16& w : weights) w.bits &= 0xbfbfu;
    const WeightSource source = {format, reinterpret_cast<const std::byte*>(weights.data()),
                                 n,      k,
                                 0,      k * block_of(format).bytes};
    const CudaMatrix w = CudaMatrix::load(queue_, {&source, 1}, Precision::kDefault);
    std::vector<float> values(static_cast<size_t>(m * k));
    const std::vector<bf16> draws = random_bf16(values.size());
    std::transform(draws.begin(), draws.end(), values.begin(), [](bf16 x) { return to_float(x); });
    const CudaMemory x = to_device(values), out(m * n * 4);
    const double ms = time([&] {
      matmul(queue_, matrix(reinterpret_cast<float*>(out.data()), m, n),
             matrix(reinterpret_cast<const float*>(x.data()), m, k), w);
    });
    const std::string what =
        concat(f8 ? "F8 linear layer, " : "linear layer, ", m, " x ", k, " by ", n, " x ", k);
    if (m < 64 && !is_limit) {  // bound by reading the weights
      copy_row(what, ms, 1e-6 * static_cast<double>(w.bytes()) / ms);
      return;
    }
    const double tflop_s = 2e-9 * static_cast<double>(m * n * k) / ms;
    double& limit = f8 ? f8_gemm_tflop_s_ : gemm_tflop_s_;
    if (is_limit) limit = std::max(limit, tflop_s);
    rows.push_back({what, ms, tflop_s, "TFLOP/s", is_limit ? 0 : tflop_s / limit,
                    is_limit ? "" : (f8 ? "F8 gemm" : "gemm"), ""});
  }

  // Norm or SwiGLU of rows that a matrix of F8 multiplies next: f32 read, a byte a column written.
  void to_f8(const char* op, int64_t m, int64_t cols, bool is_swiglu) {
    m = scaled(m, 1);
    cols = scaled(cols, 64) / 16 * 16;
    const int64_t width = is_swiglu ? 2 * cols : cols;
    const std::vector<bf16> draws = random_bf16(static_cast<size_t>(m * width));
    std::vector<float> values(draws.size());
    std::transform(draws.begin(), draws.end(), values.begin(), [](bf16 x) { return to_float(x); });
    const CudaMemory x = to_device(values), out(m * cols), scales(m * 4);
    const auto* const from = reinterpret_cast<const float*>(x.data());
    const CudaInput to =
        F8Room{reinterpret_cast<uint8_t*>(out.data()), reinterpret_cast<float*>(scales.data()), m,
               cols, std::numeric_limits<float>::infinity()};
    const double ms = time([&] {
      if (is_swiglu) {
        swiglu(queue_, to, matrix(from, m, width));
      } else {
        rms_norm(queue_, to, matrix(from, m, width), from, 1e-5f);  // weights: any numbers
      }
    });
    const double gb_s = 1e-6 * static_cast<double>(m * (4 * width + cols)) / ms;
    copy_row(concat(op, " to F8, ", m, " x ", cols), ms, gb_s);
  }

  struct Attention {
    const char* model;
    int32_t heads, kv_heads, head_dim;
    int64_t n_new, n_cached;  // of one sequence
    // Of the cached keys only: each query sees all of them, as in most of a ring's steps.
    bool full = false;
  };

  // Paged as the engine's; by the kernel that the engine takes, or by this one.
  void attention(Attention what, std::optional<AttentionKernel> kernel = std::nullopt) {
    const auto [model, heads, kv_heads, head_dim, all_new, all_cached, full] = what;
    const int64_t n_new = scaled(all_new, 1),
                  n_cached = all_cached == 0 ? 0 : scaled(all_cached, 1);
    const int64_t keys = n_cached + (full ? 0 : n_new);
    const KvFormat format = {DType::kBF16, kv_heads, head_dim, 64};
    const int64_t pages = (keys + format.page_tokens - 1) / format.page_tokens;
    std::vector<int32_t> order(static_cast<size_t>(pages)),
        positions(static_cast<size_t>(n_cached + n_new));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    std::iota(positions.begin(), positions.end(), 0);
    const int64_t width = int64_t{heads} * head_dim;
    const CudaMemory q = to_device(random_bf16(static_cast<size_t>(n_new * width)));
    const CudaMemory kv =
        to_device(random_bf16(static_cast<size_t>(pages * format.page_bytes() / 2)));
    const CudaMemory table = to_device(order), at = to_device(positions);
    const CudaMemory o(n_new * width * 4), lse(n_new * heads * 4);
    const Partial acc = {reinterpret_cast<float*>(o.data()), reinterpret_cast<float*>(lse.data()),
                         n_new, heads, head_dim};
    const auto* const on_device = reinterpret_cast<const int32_t*>(at.data());
    const Segment segment = {0,
                             static_cast<int32_t>(n_new),
                             on_device + n_cached,
                             {kv.data(), reinterpret_cast<const int32_t*>(table.data()), on_device,
                              static_cast<int32_t>(keys)}};
    const ConstTensor queries = {q.data(), DType::kBF16, n_new, width, width};
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    clear(queue_, acc);
    const bool plain = kernel == AttentionKernel::kPlain, mma = kernel == AttentionKernel::kMma;
    const double ms = time(
        [&] {
          if (plain) {
            attend_plain(queue_, queries, {&segment, 1}, format, scale, acc);
          } else if (mma) {
            attend_mma(queue_, queries, {&segment, 1}, format, scale, acc);
          } else {
            attend(queue_, queries, {&segment, 1}, format, scale, acc);
          }
        },
        plain ? 1 : 50);
    const std::string name =
        concat(plain ? "plain attention, "
               : mma ? "attention by mma, "
                     : "attention, ",
               model, " (", heads, "/", kv_heads, " heads of ", head_dim, "), ", n_new,
               full ? " tokens, full, over " : " tokens behind ", n_cached);
    const double theirs = kernel
                              ? 0
                              : cudnn_ms({heads, kv_heads, head_dim, n_new, keys,
                                          n_new > 1 && !full ? SdpaMask::kCausal : SdpaMask::kNone},
                                         q, kv, scale);
    // What bounds it: reading keys and values, or multiplying.
    const bool reads = all_new < 16;
    const double pairs =
        static_cast<double>(n_new) * static_cast<double>(n_cached) +
        (full ? 0 : 0.5 * static_cast<double>(n_new) * static_cast<double>(n_new + 1));
    const double work = reads ? 1e-6 * static_cast<double>(keys * format.row_bytes())
                              : 4e-9 * pairs * static_cast<double>(width);
    const char* const unit = reads ? "GB/s" : "TFLOP/s";
    const double limit = reads ? copy_gb_s_ : gemm_tflop_s_;
    const char* const limit_name = reads ? "copy" : "gemm";
    std::string gate;
    if (reads && !kernel) gate = decode_gate(work / ms / copy_gb_s_);
    if (theirs == 0) {
      rows.push_back({name, ms, work / ms, unit, work / ms / limit, limit_name, gate});
      return;
    }
    if (!reads) gate = attention_gate(theirs / ms);
    rows.push_back({name, ms, work / ms, unit, theirs / ms, "cuDNN", gate});
    if (!reads && n_new <= kMostBlocks) {  // as --gpu-attention cudnn: from pages, by positions
      CudnnAttention backend(*options_.cudnn);
      const double blocks = time([&] {
        backend.attend(queue_, queries, {&segment, 1}, format, scale, acc);
      });
      rows.push_back({"  the same by cuDNN's blocks, as --gpu-attention cudnn has it", blocks,
                      work / blocks, unit, theirs / blocks, "cuDNN", ""});
    }
    rows.push_back({"  the same by cuDNN", theirs, work / theirs, unit, work / theirs / limit,
                    limit_name, ""});
  }

  // Causal and full, short to long, beside cuDNN; heads of 128, then of 64.
  void attention_sweep() {
    for (const int32_t head_dim : {128, 64}) {
      for (const int64_t tokens : {2048, 8192, 32768, 131072}) {
        if (tokens > options_.longest) continue;
        const char* const model = head_dim == 128 ? "8B" : "1B";
        attention({model, 32, 8, head_dim, tokens, 0});
        attention({model, 32, 8, head_dim, tokens, tokens, true});
      }
    }
  }

  // Of a Llama 3 vocabulary; the logits are read once at the least.
  void sampling(int64_t n, const char* how, LogitWish wish) {
    const auto vocab = static_cast<int32_t>(scaled(128256, 64));
    const std::vector<bf16> draws = random_bf16(static_cast<size_t>(n * vocab));
    std::vector<float> values(draws.size());
    std::transform(draws.begin(), draws.end(), values.begin(), [](bf16 x) { return to_float(x); });
    wish.id_at = 0;
    wish.random = uint64_t{1} << 63;
    const CudaMemory logits = to_device(values),
                     wishes = to_device(std::vector<LogitWish>(static_cast<size_t>(n), wish)),
                     ids(4), answers(n * static_cast<int64_t>(sizeof(LogitAnswer)));
    const double ms = time([&] {
      sample(queue_, {reinterpret_cast<const float*>(logits.data()), n, 1, vocab},
             {reinterpret_cast<const LogitWish*>(wishes.data()), static_cast<size_t>(n)},
             {reinterpret_cast<LogitAnswer*>(answers.data()), nullptr, 0,
              reinterpret_cast<int32_t*>(ids.data())});
    });
    const double gb_s = 1e-6 * static_cast<double>(values.size() * sizeof(float)) / ms;
    copy_row(concat("sampling, ", how, ", ", n, " of ", vocab), ms, gb_s);
  }

  std::vector<GpuRow> rows;

 private:
  void copy_row(const std::string& what, double ms, double gb_s) {
    rows.push_back({what, ms, gb_s, "GB/s", gb_s / copy_gb_s_, "copy", ""});
  }

  // The same attention by cuDNN, keys in the order of memory; 0 where it is not here or says why
  // it cannot.
  double cudnn_ms(const SdpaShape& shape, const CudaMemory& q, const CudaMemory& kv, float scale) {
    if (options_.cudnn == nullptr) return 0;
    try {
      Sdpa sdpa(*options_.cudnn, shape);
      const CudaMemory o(shape.queries * shape.heads * shape.head_dim * 2),
          lse(shape.queries * shape.heads * 4);
      return time([&] {
        sdpa.attend(queue_, q.data(), kv.data(), scale, o.data(),
                    reinterpret_cast<float*>(lse.data()));
      });
    } catch (const DeviceError& error) {
      std::fprintf(stderr, "%lld queries, %lld keys: %s\n", static_cast<long long>(shape.queries),
                   static_cast<long long>(shape.keys), error.what());
      return 0;
    }
  }

  CudaQueue& queue_;
  GpuBenchOptions options_;
  double copy_gb_s_ = 1, gemm_tflop_s_ = 1e-9, f8_gemm_tflop_s_ = 1e-9;
};

}  // namespace

std::string attention_gate(double times_cudnn) {
  for (const auto& [least, said] : {std::pair{1.0, "goal 1.0x reached"},
                                    {0.85, "gate 0.85x reached"},
                                    {0.6, "gate 0.6x reached"}}) {
    if (times_cudnn >= least) return said;
  }
  return "below the gate of 0.6x";
}

std::string decode_gate(double of_copy) {
  return concat(std::lround(100 * of_copy),
                " % of copy, goal 80 %: ", of_copy >= 0.8 ? "reached" : "missed");
}

std::vector<GpuRow> measure_gpu(CudaQueue& queue, const GpuBenchOptions& options) {
  Bench bench(queue, options);
  bench.copy();
  bench.gemm(8192, 8192, 8192, true);
  bench.gemm(4096, 6144, 4096, false);  // QKV of an 8B model
  bench.gemm(1, 6144, 4096, false);
  bench.gemm(1, 16384, 16384, false);
  constexpr WeightFormat kF8 = WeightFormat::kF8E4M3;
  bench.gemm(8192, 8192, 8192, true, kF8);
  // A 405B, one rank of TP8, as the published checkpoint has it: projections bf16, FFNs F8.
  for (const int64_t m : {1, 4096, 8192}) {
    bench.gemm(m, 2304, 16384, false);        // QKV
    bench.gemm(m, 16384, 2048, false);        // output
    bench.gemm(m, 13312, 16384, false, kF8);  // gate and up
    bench.gemm(m, 16384, 6656, false, kF8);   // down
  }
  bench.to_f8("RMSNorm", 8192, 16384, false);
  bench.to_f8("SwiGLU", 8192, 6656, true);
  // The ring's full tiles, prefill's triangles, decode. Many tokens go through wgmma; the rows by
  // mma say what it gains.
  bench.attention({"405B TP8", 16, 1, 128, 8192, 32768});
  bench.attention({"405B TP8", 16, 1, 128, 8192, 32768}, AttentionKernel::kMma);
  bench.attention({"405B TP8", 16, 1, 128, 16384, 0});
  bench.attention_sweep();
  bench.attention({"8B", 32, 8, 128, 8192, 0}, AttentionKernel::kMma);
  bench.attention({"8B", 32, 8, 128, 2048, 0}, AttentionKernel::kPlain);
  bench.attention({"1B", 32, 8, 64, 8192, 0}, AttentionKernel::kMma);
  bench.attention({"405B TP8", 16, 1, 128, 1, 1048576});
  bench.attention({"405B TP8", 16, 1, 128, 1, 131072});
  bench.attention({"8B", 32, 8, 128, 1, 131072});
  bench.attention({"8B", 32, 8, 128, 1, 8192});
  const LogitWish plain = {.greedy = false},
                  filtered = {.top_p = 0.9f, .top_k = 40, .greedy = false};
  bench.sampling(1, "greedy", {});
  bench.sampling(1, "temperature 1", plain);
  bench.sampling(1, "top-k, top-p", filtered);
  bench.sampling(64, "top-k, top-p", filtered);
  return std::move(bench.rows);
}

double gemm_limit_tflop_s(CudaQueue& queue, const GpuBenchOptions& options) {
  Bench bench(queue, options);
  bench.gemm(8192, 8192, 8192, true);
  return bench.rows.back().rate;
}

std::string table_of(const std::vector<GpuRow>& rows) {
  std::string out;
  char line[256];
  for (const GpuRow& row : rows) {
    std::snprintf(line, sizeof(line), "%-78s %10.3f ms %9.1f %-7s", row.what.c_str(), row.ms,
                  row.rate, row.unit);
    out += line;
    if (row.limit[0] != '\0') {
      std::snprintf(line, sizeof(line), " %3.0f %% of %s", 100 * row.of_limit, row.limit);
      out += line;
    }
    if (!row.gate.empty()) out += "; " + row.gate;
    out += '\n';
  }
  return out;
}

std::string json_of(const std::vector<GpuRow>& rows) {
  std::string out = "[";
  char line[384];
  for (const GpuRow& row : rows) {
    std::snprintf(line, sizeof(line),
                  "%s\n  {\"what\": \"%s\", \"ms\": %.6g, \"rate\": %.6g, \"unit\": \"%s\", "
                  "\"of_limit\": %.4g, \"limit\": \"%s\", \"gate\": \"%s\"}",
                  out.size() == 1 ? "" : ",", row.what.c_str(), row.ms, row.rate, row.unit,
                  row.of_limit, row.limit, row.gate.c_str());
    out += line;
  }
  return out + "\n]\n";
}

}  // namespace annulus::bench
