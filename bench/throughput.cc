// SPDX-License-Identifier: Apache-2.0
#include "bench/throughput.h"

#include <sched.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "bench/bf16_copy.h"
#include "bench/client.h"
#include "bench/peaks.h"
#include "bench/server_process.h"
#include "bench/statistics.h"
#include "parallel/model/checkpoint.h"

namespace annulus::bench {
namespace {

constexpr const char* kSession = "throughput";

struct Options {
  std::string model, bf16_file;
  int threads = 2, repeats = 7, decode = 256, cp = 2;
  std::vector<int> prompts = {2048, 7900};
  std::vector<std::string> only = {"prompt", "decode", "bf16", "pair"};

  bool wants(const char* part) const {
    return std::find(only.begin(), only.end(), part) != only.end();
  }
};

// What the model costs. FLOP: 2 a multiply-add, half the causal square, the head once a prompt.
struct Costs {
  double linear_flop = 0, head_flop = 0, pair_flop = 0;  // a token, a prompt, a (query, key) pair
  double kv_bytes = 0;                                   // of a token, all layers

  explicit Costs(const parallel::LlamaConfig& c) {
    const double dim = c.dim, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    linear_flop = 2.0 * c.layers * (dim * (q + 2 * kv) + q * dim + 3 * dim * c.ffn);
    head_flop = 2.0 * dim * c.vocab;
    pair_flop = 4.0 * c.layers * q;
    kv_bytes = 2.0 * kv * c.layers * 2;
  }
  double prompt_gflop(double tokens) const {
    return (linear_flop * tokens + head_flop + pair_flop * tokens * (tokens + 1) / 2) * 1e-9;
  }
};

// What start() starts, on one core alone: the index-th that this process may use. A child's
// affinity is its parent's.
template <class Start>
auto on_core(int index, const Start& start) -> decltype(start()) {
  cpu_set_t before, only;
  CPU_ZERO(&only);
  if (sched_getaffinity(0, sizeof before, &before) != 0)
    return absl::UnavailableError("cannot learn which cores there are");
  int core = 0;
  for (int seen = -1; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(static_cast<size_t>(core), &before) && ++seen == index) break;
  }
  if (core == CPU_SETSIZE)
    return absl::InvalidArgumentError("the pair needs a core for each of its ranks");
  CPU_SET(static_cast<size_t>(core), &only);
  if (sched_setaffinity(0, sizeof only, &only) != 0)
    return absl::UnavailableError(absl::StrCat("cannot use core ", core, " alone"));
  auto started = start();
  sched_setaffinity(0, sizeof before, &before);
  return started;
}

// A served engine and the only client it has.
class Served {
 public:
  static absl::StatusOr<std::unique_ptr<Served>> start(const std::string& model, int cp,
                                                       int threads) {
    auto server = ServerProcess::start({"--model", model, "--cp", std::to_string(cp), "--threads",
                                        std::to_string(threads), "--log-level", "warn"});
    if (!server.ok()) return server.status();
    auto served = std::make_unique<Served>(*std::move(server));
    const auto info = served->client_.model();
    if (!info.ok()) return info.status();
    served->vocab_ = info->vocab();
    const auto cluster = served->client_.cluster();
    if (!cluster.ok()) return cluster.status();
    served->weight_bytes_ = static_cast<double>(cluster->ranks(0).weight_bytes());
    // The first request touches memory for the first time.
    if (const auto warm = served->prompt_s(64); !warm.ok()) return warm.status();
    if (const auto warm = served->decode(8); !warm.ok()) return warm.status();
    return served;
  }
  explicit Served(ServerProcess server) : server_(std::move(server)), client_(server_.address()) {}

  double weight_bytes() const { return weight_bytes_; }

  // Seconds until the first token of a new session with this many prompt tokens.
  absl::StatusOr<double> prompt_s(int tokens) {
    client_.close_session(kSession).IgnoreError();
    v1::GenerateRequest request;
    request.set_session(kSession);
    request.set_packed_tokens(pack_tokens(synthetic_ids(tokens, vocab_)));
    request.set_max_tokens(1);
    request.set_ignore_eos(true);
    const auto answer = client_.generate(request);
    if (!answer.ok()) return answer.status();
    return answer->ttft_ms / 1e3;
  }

  struct Decoded {
    double token_s = 0;               // between tokens
    double step_us = 0, idle_us = 0;  // a step of the slowest rank, and its wait for a plan before
  };
  // More tokens behind the session's; only the steps between them count. The ranks' own reports
  // are looked at meanwhile.
  absl::StatusOr<Decoded> decode(int tokens) {
    v1::GenerateRequest request;
    request.set_session(kSession);
    request.set_append(true);
    request.set_packed_tokens(pack_tokens({1}));
    request.set_max_tokens(static_cast<uint32_t>(tokens));
    request.set_ignore_eos(true);
    std::vector<double> steps, idles;
    std::atomic<bool> over = false;
    std::thread watcher([&] {
      for (;;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
        if (over) return;
        const auto cluster = client_.cluster();
        if (!cluster.ok() || over) continue;
        double step = 0, idle = 0;
        for (const v1::Rank& rank : cluster->ranks()) {
          step = std::max(step, rank.step_us());
          idle = std::max(idle, rank.idle_us());
        }
        steps.push_back(step);
        idles.push_back(idle);
      }
    });
    const auto answer = client_.generate(request);
    over = true;
    watcher.join();
    if (!answer.ok()) return answer.status();
    const double between = static_cast<double>(answer->tokens.size()) - 1;
    return Decoded{(answer->total_ms - answer->ttft_ms) / 1e3 / std::max(between, 1.0),
                   median(steps), median(idles)};
  }

 private:
  ServerProcess server_;
  Client client_;
  int32_t vocab_ = 0;
  double weight_bytes_ = 0;
};

void print_head() {
  std::printf("%-34s %9s %10s %11s %8s %7s\n", "what", "tokens/s", "rate", "limit", "reached",
              "floor");
}

void print_row(const std::string& what, double tokens_per_s, double rate, double limit,
               const char* unit, double floor, double reached) {
  std::printf("%-34s %9.1f %6.1f %-5s %5.1f %-5s %6.1f %% %5.0f %%  %s\n", what.c_str(),
              tokens_per_s, rate, unit, limit, unit, 100 * reached, 100 * floor,
              reached >= floor ? "holds" : "MISSED");
  std::fflush(stdout);
}

constexpr int kPiece = 32;  // tokens decoded between two readings of the limit

class Throughput {
 public:
  explicit Throughput(const Options& options, const Costs& costs)
      : options_(options), costs_(costs) {}

  absl::Status run() {
    const Peaks one = measure_peaks(1), all = measure_peaks(options_.threads);
    const double scale = copies_scale(2);
    std::printf(
        "# annulus-bench throughput: %s, %d threads (peaks of 1 / %d threads: fp32 %.0f / %.0f, "
        "bf16 %.0f / %.0f GFLOP/s, read %.1f / %.1f GB/s)\n# two independent copies of the peak "
        "test scale %.2f; limits in the table are measured beside the row, medians\n",
        kernels::name(kernels::detect_cpu_isa()), options_.threads, options_.threads,
        one.fp32_gflops, all.fp32_gflops, one.bf16_gflops, all.bf16_gflops, one.read_gbytes,
        all.read_gbytes, scale);
    if (options_.wants("prompt") || options_.wants("decode")) {
      const auto served = Served::start(options_.model, 1, options_.threads);
      if (!served.ok()) return served.status();
      print_head();
      if (absl::Status s = rows(**served, "as the file", 0.4, true); !s.ok()) return s;
    }
    if (options_.wants("bf16")) {
      if (absl::Status s = bf16(); !s.ok()) return s;
    }
    return options_.wants("pair") ? pair(scale) : absl::OkStatus();
  }

 private:
  absl::Status rows(Served& served, const std::string& weights, double decode_floor, bool prompts) {
    if (absl::Status s = decode_row(served, weights, 0, decode_floor); !s.ok()) return s;
    for (const int tokens : options_.prompts) {
      const Peaks peaks = measure_peaks(options_.threads);
      const bool bf16 = peaks.bf16_gflops > 0;
      const auto seconds = served.prompt_s(tokens);
      if (!seconds.ok()) return seconds.status();
      if (prompts && options_.wants("prompt")) {
        const double limit = bf16 ? peaks.bf16_gflops : peaks.fp32_gflops;
        const double floor = bf16 ? 0.4 : tokens <= 4096 ? 0.6 : 0.5;
        print_row(absl::StrCat("prompt of ", tokens), tokens / *seconds,
                  costs_.prompt_gflop(tokens) / *seconds, limit, "GF/s", floor,
                  costs_.prompt_gflop(tokens) / *seconds / limit);
      }
      // "Within 2x of its own byte floor."
      if (tokens < options_.prompts.back()) continue;
      if (absl::Status s = decode_row(served, weights, tokens, 0.5); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  // From where the session is, or a new one where depth is 0.
  absl::Status decode_row(Served& served, const std::string& weights, int depth, double floor) {
    if (!options_.wants("decode") && weights != "bf16") return absl::OkStatus();
    if (depth == 0) {
      if (const auto s = served.prompt_s(1); !s.ok()) return s.status();
    }
    ReadLimit limit(options_.threads);
    std::vector<double> token_s, rate, read, reached, step_us, idle_us;
    const int pieces = std::max(1, options_.decode / kPiece);
    double before = limit.gbytes();
    for (int piece = 0; piece < pieces; ++piece) {
      const auto decoded = served.decode(kPiece);
      if (!decoded.ok()) return decoded.status();
      const double after = limit.gbytes();
      const double bytes =
          served.weight_bytes() + costs_.kv_bytes * (depth + (piece + 0.5) * kPiece);
      token_s.push_back(decoded->token_s);
      rate.push_back(bytes * 1e-9 / decoded->token_s);
      read.push_back((before + after) / 2);
      reached.push_back(rate.back() / read.back());
      step_us.push_back(decoded->step_us);
      idle_us.push_back(decoded->idle_us);
      before = after;
    }
    print_row(absl::StrCat("decode at ", depth, ", weights ", weights), 1 / median(token_s),
              median(rate), median(read), "GB/s", floor, median(reached));
    const double between_us = median(token_s) * 1e6;
    std::printf(
        "  %d pieces of %d tokens, each beside the limit before and after it: %.1f to %.1f %% of "
        "%.1f to %.1f GB/s\n  a step: %.0f us at the rank, %.0f us between tokens at the client: "
        "%.1f %% outside; a rank waited %.0f us for its plan (%.1f %%; floor 3 %%)\n",
        pieces, kPiece, 100 * std::ranges::min(reached), 100 * std::ranges::max(reached),
        std::ranges::min(read), std::ranges::max(read), median(step_us), between_us,
        100 * (1 - median(step_us) / between_us), median(idle_us),
        100 * median(idle_us) / (median(step_us) + median(idle_us)));
    return absl::OkStatus();
  }

  absl::Status bf16() {
    std::string file = options_.bf16_file;
    if (file.empty())
      file =
          std::filesystem::temp_directory_path() / absl::StrCat("annulus-bf16-", getpid(), ".gguf");
    const bool kept = !options_.bf16_file.empty();
    const absl::Cleanup remove = [&] {
      std::error_code ignored;
      if (!kept) std::filesystem::remove(file, ignored);
    };
    if (!kept || !std::filesystem::exists(file)) {
      if (absl::Status s = write_bf16_copy(options_.model, file); !s.ok()) return s;
    }
    const auto served = Served::start(file, 1, options_.threads);
    if (!served.ok()) return served.status();
    return rows(**served, "bf16", 0.5, false);
  }

  // All engines stand ready: as many of one rank as the larger one has ranks, each on a core of
  // its own with its front end, and the larger one. What the copies reach together is what this
  // machine gives.
  absl::Status pair(double scale) {
    std::vector<std::unique_ptr<Served>> copies;
    for (int i = 0; i < options_.cp; ++i) {
      auto copy = on_core(i, [&] { return Served::start(options_.model, 1, 1); });
      if (!copy.ok()) return copy.status();
      copies.push_back(*std::move(copy));
    }
    const auto more = Served::start(options_.model, options_.cp, 1);
    if (!more.ok()) return more.status();
    const int tokens = options_.prompts.back();
    std::vector<double> prompt, decode, together, of_copies;
    for (int repeat = 0; repeat < options_.repeats; ++repeat) {
      double prompt_s[2], token_s[2];
      for (const int turn : {0, 1}) {  // in alternating order
        const int which = (turn + repeat) % 2;
        Served& served = which == 0 ? *copies[0] : **more;
        const auto seconds = served.prompt_s(tokens);
        if (!seconds.ok()) return seconds.status();
        const auto decoded = served.decode(options_.decode);
        if (!decoded.ok()) return decoded.status();
        prompt_s[which] = *seconds;
        token_s[which] = decoded->token_s;
      }
      const auto copies_s = prompts_s(copies, tokens);
      if (!copies_s.ok()) return copies_s.status();
      prompt.push_back(prompt_s[0] / prompt_s[1]);
      decode.push_back(token_s[0] / token_s[1]);
      together.push_back(options_.cp * prompt_s[0] / *copies_s);
      of_copies.push_back(*copies_s / (options_.cp * prompt_s[1]));
      std::printf(
          "  cp1 %.1f, cp%d %.1f, %d copies of cp1 %.1f tokens/s of prompt; %.1f and %.1f of "
          "decode: prompt x %.3f (copies x %.3f), decode x %.3f\n",
          tokens / prompt_s[0], options_.cp, tokens / prompt_s[1], options_.cp,
          options_.cp * tokens / *copies_s, 1 / token_s[0], 1 / token_s[1], prompt.back(),
          together.back(), decode.back());
      std::fflush(stdout);
    }
    std::printf(
        "cp%d x 1 thread over cp1 x 1 thread, prompt of %d, median of %d interleaved repeats: "
        "x %.3f (floor 1.85 where copies of the peak test scale 1.9; they scale %.2f)  %s\n"
        "  %d independent engines of cp1 scale x %.3f; cp%d reaches %.1f %% of what they do\n"
        "  decode behind the prompt: x %.3f\n",
        options_.cp, tokens, options_.repeats, median(prompt), scale,
        median(prompt) >= 1.85 || scale < 1.9 ? "holds" : "MISSED", options_.cp, median(together),
        options_.cp, 100 * median(of_copies), median(decode));
    return absl::OkStatus();
  }

  // Mean time of one prompt where every engine has one at once.
  static absl::StatusOr<double> prompts_s(const std::vector<std::unique_ptr<Served>>& engines,
                                          int tokens) {
    std::vector<absl::StatusOr<double>> seconds(engines.size(), 0.0);
    std::vector<std::thread> clients;
    for (size_t i = 0; i < engines.size(); ++i)
      clients.emplace_back([&, i] { seconds[i] = engines[i]->prompt_s(tokens); });
    for (std::thread& client : clients) client.join();
    double sum = 0;
    for (const auto& s : seconds) {
      if (!s.ok()) return s.status();
      sum += *s;
    }
    return sum / static_cast<double>(engines.size());
  }

  const Options& options_;
  const Costs costs_;
};

absl::Status run(const Options& options) {
  const auto checkpoint = parallel::Checkpoint::open(options.model);
  if (!checkpoint.ok()) return checkpoint.status();
  return Throughput(options, Costs(checkpoint->config())).run();
}

}  // namespace

int bench_throughput(int argc, char** argv) {
  Options options;
  CLI::App app("Prompt and generation tokens/s of the served engine, against limits and floors.",
               "annulus-bench throughput");
  app.add_option("--model", options.model, "model file")->required();
  app.add_option("--threads", options.threads, "threads of the one rank")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prompts", options.prompts, "prompt lengths, ascending")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--decode", options.decode,
                 "tokens of an answer, in pieces of 32 between readings of the limit")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--repeats", options.repeats, "interleaved repeats of the pair")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--only", options.only, "of prompt, decode, bf16, pair")
      ->delimiter(',')
      ->check(CLI::IsMember({"prompt", "decode", "bf16", "pair"}));
  app.add_option(
      "--bf16-file", options.bf16_file,
      "where the bf16 twin of the model is, or is to be kept (default: made and removed)");
  app.add_option("--cp", options.cp, "ranks of the pair's larger engine")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.footer(
      "  annulus-bench throughput --model M                       everything: a quarter of an "
      "hour\n"
      "  annulus-bench throughput --model M --only decode --prompts 2048");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "annulus-bench throughput: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace annulus::bench
