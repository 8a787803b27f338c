// SPDX-License-Identifier: Apache-2.0
#include "bench/recall.h"

#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/recall_run.h"
#include "bench/server_process.h"

namespace annulus::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMillion = 1 << 20;
constexpr int64_t kCp1Tokens = 65536;
// Equal to CP1 (fp32): both see the same scores, bit for bit; sums of a hundred thousand
// probabilities in another order differ by 1e-6 of themselves, logits by a hundred times that.
constexpr double kCp1Bound = 5e-4;

struct Options {
  int64_t tokens = 0;
  double budget_minutes = 0;
  int cp = 4, tp = 1, threads = 0, chunk = 0, head_dim = 16, decode = 64, cancels = 0;
  std::string precision = "default", attention = "auto", cpu_isa = "auto";
  bool against_cp1 = false, server_chunks = false;
};

// 4096 tokens a step at a million; less where that would be most of the prompt.
int32_t chunk_for(const Options& o, int64_t tokens) {
  if (o.chunk > 0) return o.chunk;
  const int64_t part = tokens / 32 / (8 * o.cp) * (8 * o.cp);
  return static_cast<int32_t>(std::clamp<int64_t>(part, 64 * o.cp, 4096));
}

struct Folder {
  Folder() : path((std::filesystem::temp_directory_path() / "annulus-recall-XXXXXX").string()) {
    if (mkdtemp(path.data()) == nullptr) path.clear();
  }
  ~Folder() {
    std::error_code ignored;
    if (!path.empty()) std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

absl::StatusOr<ServerProcess> serve(const Options& o, const std::string& folder, int cp,
                                    const std::string& precision) {
  return ServerProcess::start({"--model", folder, "--cp", absl::StrCat(cp), "--tp",
                               absl::StrCat(o.tp), "--threads", absl::StrCat(o.threads),
                               "--precision", precision, "--cpu-isa", o.cpu_isa, "--debug-requests",
                               "--log-level", "warn"});
}

RecallOptions run_options(const Options& o, const std::string& precision) {
  RecallOptions run;
  run.attention = attention_of(o.attention);
  run.bf16_cache = precision != "fp32";
  run.in_chunks = !o.server_chunks;
  return run;
}

std::string megabytes(const std::vector<int64_t>& bytes) {
  return absl::StrJoin(bytes, " ", [](std::string* out, int64_t b) {
    absl::StrAppend(out, (b + 500000) / 1000000);
  });
}

void print(const RecallPrompt& prompt, const RecallReport& r) {
  std::string steps;
  for (const auto& [variant, n] : r.prefill_steps) absl::StrAppend(&steps, " ", variant, " ", n);
  std::printf("prefill: %.1f s, %.0f tokens/s; steps:%s\n", r.prefill_s,
              static_cast<double>(prompt.layout.tokens) / std::max(r.prefill_s, 1e-9),
              steps.c_str());
  std::printf("progress: %lld events, at most %lld tokens apart\n",
              static_cast<long long>(r.progress_events),
              static_cast<long long>(r.longest_gap_tokens));
  std::printf("KV rows a rank: %lld to %lld\n", static_cast<long long>(r.least_kv_rows),
              static_cast<long long>(r.most_kv_rows));
  std::printf(
      "resident MB by rank: %s before, %s after; grew by %.1f MB since the first chunks (rows and "
      "buffers explain %.1f)\n",
      megabytes(r.resident_before).c_str(), megabytes(r.resident_after).c_str(),
      static_cast<double>(r.resident_growth) / 1e6, static_cast<double>(r.allowed_growth) / 1e6);
  std::printf("decode: %.2f ms a token at %lld tokens\n",
              r.decode_ms / std::max<double>(static_cast<double>(prompt.forced.size()), 1),
              static_cast<long long>(prompt.layout.tokens));
  std::printf("needles: %lld of %lld asks found theirs, by rank: %s; %lld positions checked\n",
              static_cast<long long>(r.found), static_cast<long long>(r.asked),
              absl::StrJoin(r.found_by_rank, " ").c_str(), static_cast<long long>(r.checked));
  std::printf("log-probabilities: worst %.2g off the computed ones (at position %lld)\n",
              r.worst_logprob, static_cast<long long>(r.worst_position));
  for (const std::string& line : r.faults) std::printf("FAULT: %s\n", line.c_str());
}

absl::StatusOr<RecallPrompt> prepare(const Options& o, int64_t tokens, const std::string& folder) {
  auto prompt =
      make_recall_prompt({tokens, chunk_for(o, tokens), o.cp}, o.head_dim, o.tp, o.decode);
  if (!prompt.ok()) return prompt;
  if (absl::Status s = write_recall_model(prompt->model, folder); !s.ok()) return s;
  return prompt;
}

// The longest prompt that the budget allows: seconds = a tokens + b tokens^2, from two short runs.
absl::StatusOr<int64_t> fit_budget(const Options& o, const std::string& folder) {
  const Clock::time_point start = Clock::now();
  constexpr int64_t kShort = 16384, kLong = 65536;
  const auto prompt = prepare(o, kLong, folder);
  if (!prompt.ok()) return prompt.status();
  const auto server = serve(o, folder, o.cp, o.precision);
  if (!server.ok()) return server.status();
  const Client client(server->address());
  double seconds[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    auto some = *prompt;
    some.ids.resize(static_cast<size_t>(i == 0 ? kShort : kLong));
    v1::GenerateRequest request;
    request.set_packed_tokens(pack_tokens(some.ids));
    request.set_max_tokens(1);
    request.set_attention(attention_of(o.attention));
    request.set_chunk_tokens(4096);
    const auto answer = client.generate(request);
    if (!answer.ok()) return answer.status();
    seconds[i] = answer->ttft_ms / 1e3;
  }
  const double s = kShort, l = kLong;
  const double b = std::max((seconds[1] / l - seconds[0] / s) / (l - s), 1e-12);
  const double a = std::max(seconds[0] / s - b * s, 0.0);
  const double spent = std::chrono::duration<double>(Clock::now() - start).count();
  // A fifth is kept for starting, decoding and a machine that others use.
  const double left = std::max(0.8 * 60 * o.budget_minutes - spent, 1.0);
  const double fits = (std::sqrt(a * a + 4 * b * left) - a) / (2 * b);
  const auto tokens =
      std::clamp<int64_t>(static_cast<int64_t>(fits) / 4096 * 4096, kShort, kMillion);
  std::printf(
      "calibration: %.1f s for %lld tokens, %.1f s for %lld; %.0f s are left: %lld tokens\n",
      seconds[0], static_cast<long long>(kShort), seconds[1], static_cast<long long>(kLong), left,
      static_cast<long long>(tokens));
  return tokens;
}

absl::StatusOr<bool> cancel_all(const Client& client, const Options& o,
                                const RecallPrompt& prompt) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> point(0, 0.95);
  bool good = true;
  for (int i = 0; i < o.cancels; ++i) {
    const auto report = cancel_recall(client, prompt, run_options(o, o.precision), point(random));
    if (!report.ok()) return report.status();
    // The one that runs, one behind it where steps are short, the one that frees the rows.
    const bool at_once = report->steps <= 3;
    std::printf(
        "cancel after %lld tokens: dropped in %.0f ms, %lld steps later (%.0f ms) no rank holds a "
        "row; longest step %.0f ms%s\n",
        static_cast<long long>(report->tokens_done), report->effect_ms,
        static_cast<long long>(report->steps), report->empty_ms, report->longest_step_ms,
        at_once ? "" : "  FAULT: it ran on");
    std::fflush(stdout);
    good &= at_once;
  }
  return good;
}

absl::StatusOr<RecallReport> run_on(const Options& o, const RecallPrompt& prompt,
                                    const std::string& folder, int cp, const std::string& precision,
                                    bool cancels, bool& good) {
  const auto server = serve(o, folder, cp, precision);
  if (!server.ok()) return server.status();
  const Client client(server->address());
  RecallOptions options = run_options(o, precision);
  options.out = stdout;
  options.front_end = server->pid();
  if (cancels) {
    const auto at_once = cancel_all(client, o, prompt);
    if (!at_once.ok()) return at_once.status();
    good &= *at_once;
  }
  std::printf("# %lld tokens, TP %d x CP %d, chunks of %d, %s, %s\n",
              static_cast<long long>(prompt.layout.tokens), o.tp, cp, prompt.layout.chunk,
              precision.c_str(), o.attention.c_str());
  auto report = run_recall(client, prompt, options);
  if (!report.ok()) return report;
  print(prompt, *report);
  good &= report->ok();
  return report;
}

absl::StatusOr<bool> run(Options o) {
  const Folder folder;
  if (folder.path.empty()) return absl::PermissionDeniedError("no temporary folder");
  bool good = true;
  if (o.against_cp1) {
    const int64_t tokens = o.tokens > 0 ? o.tokens : kCp1Tokens;
    const auto prompt = prepare(o, tokens, folder.path);
    if (!prompt.ok()) return prompt.status();
    const auto ring = run_on(o, *prompt, folder.path, o.cp, "fp32", false, good);
    if (!ring.ok()) return ring.status();
    const auto alone = run_on(o, *prompt, folder.path, 1, "fp32", false, good);
    if (!alone.ok()) return alone.status();
    const auto worst = largest_difference(*ring, *alone);
    if (!worst.ok()) return worst.status();
    std::printf(
        "CP%d against CP1: all best ids equal, log-probabilities within %.2g (bound %.2g)\n", o.cp,
        *worst, kCp1Bound);
    return good && *worst <= kCp1Bound;
  }
  if (o.tokens == 0) {
    const auto fits = fit_budget(o, folder.path);
    if (!fits.ok()) return fits.status();
    o.tokens = *fits;
  }
  const auto prompt = prepare(o, o.tokens, folder.path);
  if (!prompt.ok()) return prompt.status();
  const auto report = run_on(o, *prompt, folder.path, o.cp, o.precision, o.cancels > 0, good);
  if (!report.ok()) return report.status();
  return good;
}

}  // namespace

int bench_recall(int argc, char** argv) {
  Options o;
  CLI::App app(
      "A long prompt through gRPC into an engine of processes, with a constructed model that finds "
      "needles on every edge of the split.",
      "annulus-bench recall");
  app.add_option("--tokens", o.tokens, "length of the prompt")
      ->check(CLI::Range(int64_t{1024}, kMillion));
  app.add_option("--budget", o.budget_minutes,
                 "or minutes to spend: the longest prompt, up to 1048576 tokens, that fits")
      ->check(CLI::PositiveNumber);
  app.add_option("--cp", o.cp, "context-parallel ranks")->check(CLI::Range(1, 64));
  app.add_option("--tp", o.tp, "tensor-parallel ranks")->check(CLI::Range(1, 16));
  app.add_option("--threads", o.threads, "threads a rank (0: the server's choice)");
  app.add_option("--chunk", o.chunk, "prefill chunk in tokens (0: by length)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--server-chunks", o.server_chunks,
               "the server cuts chunks by time; needles stand as for --chunk");
  app.add_option("--head-dim", o.head_dim, "of the one head a TP rank has: 16, 32, 64...");
  app.add_option("--decode", o.decode, "needles asked for while decoding")
      ->check(CLI::Range(0, 4096));
  app.add_option("--precision", o.precision, "default or fp32")
      ->check(CLI::IsMember({"default", "fp32"}));
  app.add_option("--attention", o.attention, "auto, pass-kv, pass-q or gather-q")
      ->check(CLI::IsMember({"auto", "pass-kv", "pass-q", "gather-q"}));
  app.add_option("--cpu-isa", o.cpu_isa, "cap of the CPU's instruction set");
  app.add_option("--cancel", o.cancels, "first start the prompt this often and cancel it somewhere")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--against-cp1", o.against_cp1,
               "in fp32, on --cp ranks and on one: equal answers (65536 tokens, or --tokens)");
  app.footer(
      "  annulus-bench recall --budget 20\n"
      "  annulus-bench recall --tokens 1048576 --cp 4\n"
      "  annulus-bench recall --tokens 65536 --against-cp1");
  CLI11_PARSE(app, argc, argv);
  if (o.tokens == 0 && o.budget_minutes <= 0) o.budget_minutes = 20;
  const absl::StatusOr<bool> good = run(o);
  if (!good.ok()) {
    std::fprintf(stderr, "annulus-bench recall: %s\n",
                 std::string(good.status().message()).c_str());
    return 1;
  }
  std::printf("%s\n", *good ? "PASS" : "FAIL");
  return *good ? 0 : 1;
}

}  // namespace annulus::bench
