// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate.h"

#include <chrono>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/simulate_flags.h"
#include "bench/simulate_learn.h"
#include "bench/simulate_paper.h"
#include "bench/simulate_questions.h"
#include "bench/simulate_regret.h"

namespace annulus::bench {
namespace {

using parallel::Topology;
using parallel::Variant;

struct RunOptions {
  Topology topology{8, 1};
  Workload work;
  std::string variant = "auto";
  double max_step_ms = 0;
  std::string trace;
};

void print_shares(const char* what, const StepTimes& t) {
  const auto ms = [&](Share share) { return of(t.mean, share) / 1e3; };
  std::printf(
      "  %s, mean of the ranks, ms: linear %.2f, attention %.2f, TP sums %.2f, rows %.2f, packing "
      "and merging %.2f, starting hops %.2f, collectives %.2f, waiting %.2f\n",
      what, ms(Share::kMatmul), ms(Share::kAttend), ms(Share::kAllReduce), ms(Share::kRows),
      ms(Share::kPack) + ms(Share::kMerge), ms(Share::kHop), ms(Share::kCollective),
      ms(Share::kWait));
}

absl::Status run(const SimFlags& flags, const RunOptions& options) {
  Workload work = options.work;
  if (options.variant != "auto") {
    const absl::StatusOr<Variant> variant = parallel::parse_variant(options.variant);
    if (!variant.ok()) return variant.status();
    work.variant = *variant;
  }
  if (options.max_step_ms > 0) work.max_step_us = options.max_step_ms * 1e3;
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<server::TraceFile> trace;
  if (!options.trace.empty()) {
    std::vector<std::string> ranks;
    for (int32_t r = 0; r < options.topology.cp; ++r) {
      ranks.push_back(absl::StrCat("cp rank ", r, ", ", options.topology.tp, " TP rank(s) alike"));
    }
    auto file = server::TraceFile::create(options.trace, ranks);
    if (!file.ok()) return file.status();
    trace = *std::move(file);
  }
  const absl::StatusOr<Simulated> done =
      simulate(flags.model, flags.machine, options.topology, work, false, trace.get());
  if (!done.ok()) return done.status();
  const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const Topology t = options.topology;
  std::printf("# %s on %s, TP %d x CP %d = %d ranks; %lld cached, %lld new tokens, batch %d\n",
              flags.model.config.name.c_str(), flags.machine.name.c_str(), t.tp, t.cp, t.world(),
              static_cast<long long>(work.cached), static_cast<long long>(work.prompt), work.batch);
  std::printf("# simulated in %.1f s; the engine ran %d of %d layers, found equal\n", s,
              std::min(kRecordedLayers, done->layers), done->layers);
  const double gb = rank_bytes(flags.model, t, work) / 1e9;
  std::printf("memory of a rank: %.1f GB of %.0f for weights and KV%s\n", gb,
              flags.machine.memory_gb, gb > flags.machine.memory_gb ? " (DOES NOT FIT)" : "");
  std::printf("TTFT %.1f ms in %zu step(s), %s\n", done->ttft_us() / 1e3, done->prefill.size(),
              variants_text(done->prefill[0].variants).c_str());
  print_shares("first step", done->prefill[0].times);
  if (!done->decode.empty()) {
    std::printf("TTIT %.2f ms over %zu step(s), %s\n", done->ttit_us() / 1e3, done->decode.size(),
                variants_text(done->decode[0].variants).c_str());
    print_shares("last step", done->decode.back().times);
  }
  return absl::OkStatus();
}

}  // namespace

void SimFlags::add_to(CLI::App& app) {
  app.add_option("--machine", machine_name,
                 absl::StrCat("a machine file, or ", absl::StrJoin(built_in_machines(), ", ")))
      ->capture_default_str();
  app.add_option("--model", model_name,
                 "llama-405b, llama-70b, llama-8b, smollm2-135m, or a config.json")
      ->capture_default_str();
}

absl::Status SimFlags::load() {
  absl::StatusOr<Machine> m = load_machine(machine_name);
  if (!m.ok()) return m.status();
  machine = *std::move(m);
  absl::StatusOr<SimModel> shape = sim_model(model_name);
  if (!shape.ok()) return shape.status();
  model = *std::move(shape);
  return absl::OkStatus();
}

int bench_simulate(int argc, char** argv) {
  SimFlags flags;
  RunOptions options;
  Questions questions;
  CLI::App app(
      "The engine in virtual time: the real scheduler, shards, policy and ring of every rank, on "
      "ops and links that take modelled time and move no data.",
      "annulus-bench simulate");
  app.require_subcommand(1);
  CLI::App* const of_run = app.add_subcommand("run", "one workload on one layout");
  flags.add_to(*of_run);
  of_run->add_option("--tp", options.topology.tp, "tensor-parallel ranks")->capture_default_str();
  of_run->add_option("--cp", options.topology.cp, "context-parallel ranks")->capture_default_str();
  of_run->add_option("--cached", options.work.cached, "tokens whose KV is there");
  of_run->add_option("--prompt", options.work.prompt, "new tokens")->required();
  of_run->add_option("--answer", options.work.answer, "answer tokens")->capture_default_str();
  of_run->add_option("--batch", options.work.batch, "such requests at once")->capture_default_str();
  of_run->add_option("--attention", options.variant, "auto, pass-kv, pass-q or gather-q")
      ->capture_default_str();
  of_run->add_option("--max-step-ms", options.max_step_ms,
                     "chunks of the prompt (0: all in one step)");
  of_run->add_option(
      "--trace", options.trace,
      "file for what every rank does when, in virtual time; ui.perfetto.dev opens it");
  CLI::App* const of_paper = app.add_subcommand(
      "paper", "Tables 4 to 8 of arXiv 2411.01783 and its TTFT points beside the simulated ones");
  std::string paper_machine = "gtt";
  of_paper->add_option("--machine", paper_machine, "a machine file or name")->capture_default_str();
  SimulatedRegret regret;
  regret.add_to(app);
  SimulatedLearning learning;
  learning.add_to(app, flags);
  questions.add_to(app, flags);
  app.footer(
      "  annulus-bench simulate paper\n"
      "  annulus-bench simulate run --machine gtt --tp 8 --cp 16 --prompt 1000000 --answer 9\n"
      "  annulus-bench simulate regret --machines gtt,zen5 --cp 4,16 --rows\n"
      "  annulus-bench simulate learn --machine gtt --epochs 20 --wrong-transfers 8\n"
      "  annulus-bench simulate best --prompt 1000000 --ttft-ms 60000\n"
      "  annulus-bench simulate passq --cp 4 --total 128000\n"
      "  annulus-bench simulate links --cp 16 --prompt 128000\n"
      "  annulus-bench simulate decode --context 128000 --batch 1,8\n"
      "  annulus-bench simulate scale --prompt 1000000 --figure scale.svg");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  absl::Status status;
  if (of_paper->parsed()) {
    const absl::StatusOr<Machine> machine = load_machine(paper_machine);
    status = machine.ok() ? print_paper(*machine) : machine.status();
  } else if (regret.parsed()) {
    status = regret.run();
  } else {
    status = flags.load();
    if (status.ok()) {
      status = of_run->parsed()    ? run(flags, options)
               : learning.parsed() ? learning.run(flags)
                                   : questions.answer(flags);
    }
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "annulus-bench simulate: %s\n", std::string(status.message()).c_str());
  return 2;
}

}  // namespace annulus::bench
