// SPDX-License-Identifier: Apache-2.0
#include "bench/golden.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/client.h"
#include "bench/golden_cases.h"
#include "bench/server_process.h"

namespace annulus::bench {
namespace {

constexpr uint32_t kTop = 128;  // wide enough to hold a golden's 8 top ids in any class

struct Options {
  std::string model, cases, out, server, precision = "default", cpu_isa = "auto",
                                         attention = "auto", device = "cpu";
  std::string against, only;
  int tp = 1, cp = 1, threads = 0, chunk = 0;
  double worst = 5e-4;
  bool free_running = false;
};

absl::StatusOr<GoldenPosition> position(
    const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& top,
    const std::vector<int32_t>& wanted) {
  if (top.empty()) return absl::InternalError("the server sent no log-probabilities");
  GoldenPosition out{static_cast<int32_t>(top[0].id()), {}};
  for (const int32_t id : wanted) {
    const auto it = std::find_if(top.begin(), top.end(), [&](const v1::TokenLogprob& t) {
      return static_cast<int32_t>(t.id()) == id;
    });
    if (it == top.end())
      return absl::InternalError(
          absl::StrCat("id ", id, " is not among the ", kTop, " most likely"));
    out.logprobs.push_back(it->logprob());
  }
  return out;
}

v1::GenerateRequest request_for(const GoldenCase& c, const Options& options) {
  v1::GenerateRequest request;
  request.set_packed_tokens(pack_tokens(c.prompt_ids));
  request.set_session(c.session);
  request.set_ignore_eos(c.session.empty());
  request.set_attention(attention_of(options.attention));
  request.set_chunk_tokens(static_cast<uint32_t>(options.chunk));
  if (c.nll) {
    request.set_max_tokens(1);
    request.set_top_logprobs(0);
    request.set_all_prompt_logprobs(true);
    return request;
  }
  request.set_max_tokens(static_cast<uint32_t>(c.ids.size()));
  if (options.free_running) return request;
  request.set_top_logprobs(kTop);
  request.set_ignore_eos(true);
  for (const int32_t id : c.ids) request.add_forced_tokens(static_cast<uint32_t>(id));
  // Asking for a reused position would have it computed again: later turns of a session are there
  // to test the reuse.
  if (c.reused == 0) {
    for (const int64_t p : c.probe_positions) request.add_prompt_logprob_positions(p);
  }
  return request;
}

absl::StatusOr<GoldenAnswer> run_case(const Client& client, const GoldenCase& c,
                                      const Options& options) {
  const absl::StatusOr<Answer> said = client.generate(request_for(c, options));
  if (!said.ok()) return said.status();
  GoldenAnswer answer;
  answer.name = c.name;
  // The last token of a turn was sampled but never fed, so the cache holds one less than prompt and
  // answer.
  const int64_t cached = c.session.empty() ? 0 : std::max<int64_t>(c.reused - 1, 0);
  if (said->accepted.cached_tokens() != cached) {
    return absl::InternalError(
        absl::StrCat(said->accepted.cached_tokens(), " tokens were cached, not ", cached));
  }
  if (c.nll) {
    std::vector<double> losses;
    for (const v1::PromptLogprob& p : said->prompt) {
      if (p.has_next_id()) losses.push_back(-static_cast<double>(p.logprob()));
    }
    if (losses.size() + 1 != c.prompt_ids.size()) {
      return absl::InternalError(
          absl::StrCat(losses.size(), " losses for ", c.prompt_ids.size(), " tokens"));
    }
    summarise_losses(losses, answer);
    return answer;
  }
  if (options.free_running) {
    for (const v1::Token& t : said->tokens) answer.ids.push_back(static_cast<int32_t>(t.id()));
    return answer;
  }
  if (said->tokens.size() != c.ids.size()) {
    return absl::InternalError(absl::StrCat(said->tokens.size(), " tokens, not ", c.ids.size()));
  }
  for (size_t i = 0; i < c.ids.size(); ++i) {
    absl::StatusOr<GoldenPosition> p = position(said->tokens[i].top(), c.step_top_ids[i]);
    if (!p.ok()) return p.status();
    answer.steps.push_back(*std::move(p));
  }
  for (size_t i = 0; c.reused == 0 && i < c.probe_positions.size(); ++i) {
    const auto it = std::find_if(
        said->prompt.begin(), said->prompt.end(),
        [&](const v1::PromptLogprob& p) { return p.position() == c.probe_positions[i]; });
    if (it == said->prompt.end()) return absl::InternalError("a probe position has no answer");
    absl::StatusOr<GoldenPosition> p = position(it->top(), c.probe_top_ids[i]);
    if (!p.ok()) return p.status();
    answer.probes.push_back(*std::move(p));
  }
  return answer;
}

// Cases of one batch run at the same time, turns of a session in file order, the rest one by one.
absl::StatusOr<std::vector<GoldenAnswer>> run_cases(const Client& client,
                                                    const std::vector<GoldenCase>& cases,
                                                    const Options& options) {
  std::vector<absl::StatusOr<GoldenAnswer>> results(cases.size(), absl::UnknownError("not run"));
  for (size_t first = 0; first < cases.size();) {
    size_t end = first + 1;
    while (!cases[first].batch.empty() && end < cases.size() &&
           cases[end].batch == cases[first].batch)
      ++end;
    {
      std::vector<std::jthread> batch;
      for (size_t i = first; i < end; ++i) {
        batch.emplace_back([&, i] { results[i] = run_case(client, cases[i], options); });
      }
    }
    for (size_t i = first; i < end; ++i) {
      std::fprintf(stderr, "%-16s %s\n", cases[i].name.c_str(),
                   results[i].ok() ? "answered" : results[i].status().ToString().c_str());
      if (!results[i].ok()) return results[i].status();
    }
    first = end;
  }
  std::vector<GoldenAnswer> answers;
  answers.reserve(results.size());
  for (auto& r : results) answers.push_back(*std::move(r));
  return answers;
}

absl::Status run(const Options& options) {
  absl::StatusOr<std::vector<GoldenCase>> cases = read_cases(options.cases);
  if (!cases.ok()) return cases.status();
  if (!options.only.empty()) {
    std::erase_if(*cases, [&](const GoldenCase& c) {
      return absl::StrCat(",", options.only, ",").find(absl::StrCat(",", c.name, ",")) ==
             std::string::npos;
    });
    if (cases->empty()) return absl::InvalidArgumentError("--only names no case of the file");
  }
  std::optional<ServerProcess> server;
  std::string address = options.server;
  if (address.empty()) {
    std::vector<std::string> flags = {"--model",
                                      options.model,
                                      "--tp",
                                      std::to_string(options.tp),
                                      "--cp",
                                      std::to_string(options.cp),
                                      "--precision",
                                      options.precision,
                                      "--cpu-isa",
                                      options.cpu_isa,
                                      "--device",
                                      options.device,
                                      "--debug-requests",
                                      "--log-level",
                                      "warn"};
    if (options.threads > 0)
      flags.insert(flags.end(), {"--threads", std::to_string(options.threads)});
    absl::StatusOr<ServerProcess> started = ServerProcess::start(flags);
    if (!started.ok()) return started.status();
    server.emplace(*std::move(started));
    address = server->address();
  }
  const Client client(address);
  // A session left by an earlier run on the same server would count as cached.
  for (const GoldenCase& c : *cases) {
    if (!c.session.empty()) client.close_session(c.session).IgnoreError();
  }
  absl::StatusOr<std::vector<GoldenAnswer>> answers = run_cases(client, *cases, options);
  if (!answers.ok()) return answers.status();
  if (absl::Status s = write_answers(options.out, *answers); !s.ok()) return s;
  if (options.against.empty()) return absl::OkStatus();
  absl::StatusOr<std::vector<GoldenAnswer>> other = read_answers(options.against);
  if (!other.ok()) return other.status();
  const absl::StatusOr<double> worst = worst_difference(*answers, *other);
  if (!worst.ok()) return worst.status();
  std::printf("worst difference to %s: %.3g (bound %.3g)\n", options.against.c_str(), *worst,
              options.worst);
  if (*worst <= options.worst) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("differs by ", *worst, ", more than ", options.worst));
}

}  // namespace

int bench_golden(int argc, char** argv) {
  Options o;
  CLI::App app(
      "Runs a case file of tests/golden through an engine of processes; check.py judges what it "
      "writes.",
      "annulus-bench golden");
  app.add_option("--model", o.model, "model file or folder");
  app.add_option("--cases", o.cases, "generate.jsonl or nll.jsonl")->required();
  app.add_option("--out", o.out, "answers, one JSON line a case")->required();
  app.add_option("--tp", o.tp, "tensor-parallel ranks");
  app.add_option("--cp", o.cp, "context-parallel ranks");
  app.add_option("--threads", o.threads, "threads a rank (0: the server's choice)");
  app.add_option("--attention", o.attention, "auto, pass-kv, pass-q or gather-q")
      ->check(CLI::IsMember({"auto", "pass-kv", "pass-q", "gather-q"}));
  app.add_option("--chunk", o.chunk, "prefill chunk in tokens (0: the server's choice)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--precision", o.precision, "default or fp32");
  app.add_option("--cpu-isa", o.cpu_isa, "cap of the CPU's instruction set");
  app.add_option("--device", o.device, "cpu or cuda: what a rank computes on")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--server", o.server,
                 "a running server (with --debug-requests) instead of a new one");
  app.add_option("--only", o.only, "names of cases, comma-separated");
  app.add_option(
      "--against", o.against,
      "answers of another run: fail where log-probabilities differ by more than --worst");
  app.add_option("--worst", o.worst, "bound for --against");
  app.add_flag("--free", o.free_running, "free-running greedy instead of teacher-forced");
  app.footer(
      "  annulus-bench golden --model M --cases tests/golden/generate.jsonl --out a.jsonl --cp 3 "
      "--precision fp32\n"
      "  python3 tests/golden/check.py tests/golden/generate.jsonl a.jsonl --class fp32");
  CLI11_PARSE(app, argc, argv);
  if (o.model.empty() && o.server.empty()) {
    std::fprintf(stderr, "annulus-bench golden: give --model or --server\n");
    return 2;
  }
  const absl::Status status = run(o);
  if (status.ok()) return 0;
  std::fprintf(stderr, "annulus-bench golden: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace annulus::bench
