// SPDX-License-Identifier: Apache-2.0
#include "bench/serve_load.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "bench/client.h"
#include "bench/command_line.h"
#include "bench/latency_report.h"
#include "bench/progress_bar.h"
#include "bench/serve_metrics.h"
#include "bench/server_process.h"
#include "bench/statistics.h"

namespace annulus::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kExamples =
    R"(  annulus-bench serve --address HOST:PORT --rate 4 --requests 200 --json out.json      Poisson, 4 a second
  annulus-bench serve --address HOST:PORT --concurrency 8 --input-len 128:2048         a closed loop of 8
  annulus-bench serve --model M --cp 2 --concurrency 4 --goodput ttft:500 tpot:50 -- --threads 1
What follows -- goes to `annulus serve`.)";

constexpr int kMostThreads = 1024;  // at once; more than a server's queue takes anyway

struct Options {
  std::string address, model, json, input = "512", output = "64";
  std::vector<std::string> serve_flags, goodput;
  std::vector<double> percentiles = {50, 90, 99};
  int cp = 1, tp = 1, requests = 100, concurrency = 0, warmup = 1;
  double rate = std::numeric_limits<double>::infinity(), timeout_s = 600;
  uint64_t seed = 0;
};

struct Lengths {
  int low = 1, high = 1;
};

absl::StatusOr<Lengths> parse_lengths(const char* flag, const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  Lengths out;
  const bool numbers = parts.size() <= 2 && absl::SimpleAtoi(parts.front(), &out.low) &&
                       absl::SimpleAtoi(parts.back(), &out.high);
  if (numbers && out.low >= 1 && out.high >= out.low && out.high <= 1 << 30) return out;
  return absl::InvalidArgumentError(absl::StrCat(
      flag, " \"", text, "\" is neither a number of tokens nor LOW:HIGH with 1 <= LOW <= HIGH"));
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Load {
 public:
  Load(const Client& client, int32_t vocab, const Options& options, Lengths input, Lengths output)
      : client_(client),
        vocab_(vocab),
        options_(options),
        inputs_(uniform_lengths(options.requests, input.low, input.high, options.seed + 1)),
        outputs_(uniform_lengths(options.requests, output.low, output.high, options.seed + 2)),
        arrivals_(poisson_arrivals(options.requests, options.rate, options.seed)) {}

  absl::Status warm_up() const {
    for (int i = 0; i < options_.warmup; ++i) {
      const ServedRequest request = send(i % options_.requests, 0);
      if (!request.ok()) return absl::UnavailableError(absl::StrCat("warm-up: ", request.error));
    }
    return absl::OkStatus();
  }

  // All requests, to their ends. Seconds it took.
  double run() {
    requests_.resize(static_cast<size_t>(options_.requests));
    const int limit = options_.concurrency > 0 ? options_.concurrency : options_.requests;
    const int senders = std::min({limit, options_.requests, kMostThreads});
    start_ = Clock::now();
    std::vector<std::jthread> threads;
    threads.reserve(static_cast<size_t>(senders));
    for (int i = 0; i < senders; ++i) threads.emplace_back([this] { send_all(); });
    ProgressBar bar("serve");
    while (done_ < options_.requests) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      bar.show(static_cast<double>(done_) / options_.requests,
               absl::StrFormat("%d of %d requests, %d under way, %d failed", done_.load(),
                               options_.requests, running_.load(), failed_.load()));
    }
    return seconds_since(start_);
  }

  const std::vector<ServedRequest>& requests() const { return requests_; }

 private:
  void send_all() {
    for (int i = next_++; i < options_.requests; i = next_++) {
      const auto at = static_cast<size_t>(i);
      std::this_thread::sleep_until(start_ + std::chrono::duration_cast<Clock::duration>(
                                                 std::chrono::duration<double>(arrivals_[at])));
      ++running_;
      requests_[at] = send(i, seconds_since(start_));
      --running_;
      failed_ += !requests_[at].ok();
      ++done_;
    }
  }

  ServedRequest send(int number, double start_s) const {
    const auto at = static_cast<size_t>(number);
    ServedRequest out;
    out.start_s = start_s;
    out.input_tokens = inputs_[at];
    v1::GenerateRequest request;
    std::vector<int32_t> ids = synthetic_ids(inputs_[at], vocab_);
    ids[0] = number % vocab_;  // no two prompts begin alike
    request.set_packed_tokens(pack_tokens(ids));
    request.set_max_tokens(static_cast<uint32_t>(outputs_[at]));
    request.set_ignore_eos(true);
    const auto answer = client_.generate(request, options_.timeout_s);
    if (!answer.ok()) {
      out.error = absl::StrCat(absl::StatusCodeToString(answer.status().code()), ": ",
                               answer.status().message());
      return out;
    }
    out.error = answer->token_ms.empty() ? "no token came" : "";
    out.output_tokens = static_cast<int>(answer->token_ms.size());
    out.ttft_s = answer->ttft_ms / 1e3;
    out.e2el_s = answer->token_ms.empty() ? 0 : answer->token_ms.back() / 1e3;
    for (size_t i = 1; i < answer->token_ms.size(); ++i)
      out.gaps_s.push_back((answer->token_ms[i] - answer->token_ms[i - 1]) / 1e3);
    return out;
  }

  const Client& client_;
  const int32_t vocab_;
  const Options& options_;
  const std::vector<int> inputs_, outputs_;
  const std::vector<double> arrivals_;
  Clock::time_point start_;
  std::vector<ServedRequest> requests_;  // each written by whoever sends it
  std::atomic<int> next_ = 0, done_ = 0, running_ = 0, failed_ = 0;
};

absl::StatusOr<int> run(const Options& options) {
  if (options.address.empty() == options.model.empty())
    return absl::InvalidArgumentError("give one of --address HOST:PORT and --model M");
  if (!options.serve_flags.empty() && options.model.empty())
    return absl::InvalidArgumentError("flags behind -- are those of a server started with --model");
  const auto input = parse_lengths("--input-len", options.input);
  if (!input.ok()) return input.status();
  const auto output = parse_lengths("--output-len", options.output);
  if (!output.ok()) return output.status();
  const auto goodput = parse_goodput(options.goodput);
  if (!goodput.ok()) return goodput.status();

  if (absl::Status s = check_writable(options.json); !s.ok()) return s;

  std::optional<ServerProcess> server;
  if (!options.model.empty()) {
    std::vector<std::string> flags = {"--model",     options.model,
                                      "--cp",        std::to_string(options.cp),
                                      "--tp",        std::to_string(options.tp),
                                      "--log-level", "warn"};
    flags.insert(flags.end(), options.serve_flags.begin(), options.serve_flags.end());
    auto started = ServerProcess::start(flags);
    if (!started.ok()) return started.status();
    server.emplace(*std::move(started));
  }
  const std::string address = server ? server->address() : options.address;
  const Client client(address);
  const auto served = client.reach();
  if (!served.ok()) return served.status();
  if (int64_t{input->high} + output->high > served->model.served_context()) {
    return absl::OutOfRangeError(absl::StrCat("--input-len ", input->high, " and --output-len ",
                                              output->high, " do not fit the served context of ",
                                              served->model.served_context()));
  }
  std::printf(
      "# annulus-bench serve: %s at %s, tp %d x cp %d, precision %s\n# %d requests, rate %g/s, "
      "concurrency %s, input %s, output %s tokens, warm-up %d, seed %llu\n",
      served->model.name().c_str(), address.c_str(), served->cluster.tp(), served->cluster.cp(),
      served->model.precision().c_str(), options.requests, options.rate,
      options.concurrency > 0 ? std::to_string(options.concurrency).c_str() : "unlimited",
      options.input.c_str(), options.output.c_str(), options.warmup,
      static_cast<unsigned long long>(options.seed));
  std::fflush(stdout);

  Load load(client, served->model.vocab(), options, *input, *output);
  if (absl::Status s = load.warm_up(); !s.ok()) return s;
  const double duration_s = load.run();
  nlohmann::json metrics =
      serve_metrics(load.requests(), duration_s, options.percentiles, *goodput);
  std::printf("%s", metrics_text(metrics, options.percentiles).c_str());
  for (const ServedRequest& request : load.requests()) {
    if (request.ok()) continue;
    std::printf("# the first that failed: %s\n", request.error.c_str());
    break;
  }
  const auto number_or = [](bool is_number, double value, const nlohmann::json& otherwise) {
    return is_number ? nlohmann::json(value) : otherwise;
  };
  const nlohmann::json about = {
      {"date", absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone())},
      {"backend", "annulus"},
      {"endpoint_type", "annulus.v1.Inference/Generate"},
      {"model_id", served->model.name()},
      {"tokenizer_id", served->model.name()},
      {"num_prompts", options.requests},
      {"request_rate", number_or(std::isfinite(options.rate), options.rate, "inf")},
      {"burstiness", 1.0},
      {"max_concurrency", number_or(options.concurrency > 0, options.concurrency, {})},
      {"tensor_parallel", served->cluster.tp()},
      {"context_parallel", served->cluster.cp()}};
  metrics.update(about);
  if (!options.json.empty()) {
    if (absl::Status s = write_file(options.json, metrics.dump() + "\n"); !s.ok()) return s;
  }
  return metrics.at("failed").get<int>() == 0 ? 0 : 1;
}

}  // namespace

int bench_serve(int argc, char** argv) {
  Options o;
  o.serve_flags = after_dashes(argc, argv);
  CLI::App app("A load of requests: throughput and latencies, as vLLM's serving benchmark.",
               "annulus-bench serve");
  app.add_option("--address", o.address, "HOST:PORT of a running server");
  app.add_option("--model", o.model, "model file or folder: a server is started here");
  app.add_option("--cp", o.cp, "of that server")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--tp", o.tp, "of that server")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--requests", o.requests, "in all")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--rate", o.rate, "requests a second, Poisson; inf: all at once")
      ->check(number_up_to(0, std::numeric_limits<double>::infinity()))
      ->capture_default_str();
  app.add_option("--concurrency", o.concurrency,
                 "requests under way at most; 0: as many as come, up to 1024")
      ->check(CLI::Range(0, kMostThreads))
      ->capture_default_str();
  app.add_option("--input-len", o.input, "tokens of a prompt: N, or LOW:HIGH drawn evenly")
      ->capture_default_str();
  app.add_option("--output-len", o.output, "tokens of an answer, the same")->capture_default_str();
  app.add_option("--warmup", o.warmup, "requests before those that count, one by one")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  app.add_option("--percentiles", o.percentiles, "of every metric")
      ->delimiter(',')
      ->check(number_up_to(0, 100))
      ->capture_default_str();
  app.add_option("--goodput", o.goodput, "ttft:MS, tpot:MS, e2el:MS: what a good request keeps");
  app.add_option("--timeout", o.timeout_s, "seconds that a request may take")
      ->check(number_up_to(0, 1e6))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "of arrivals and lengths")->capture_default_str();
  app.add_option("--json", o.json, "writes everything under vLLM's names");
  app.footer(kExamples);
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  const auto code = run(o);
  return code.ok() ? *code : report("serve", code.status());
}

}  // namespace annulus::bench
