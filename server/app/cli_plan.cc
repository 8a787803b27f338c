// SPDX-License-Identifier: Apache-2.0
// `annulus plan`: which layouts hold a model and a context in the memory of their ranks.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/rank_memory.h"
#include "server/app/cli_commands.h"
#include "server/app/config.h"
#include "server/app/sizing.h"
#include "server/one_line.h"

namespace annulus::server {

namespace {

using parallel::MemoryQuestion;
using parallel::RankMemory;

constexpr const char* kExamples = R"(Examples:
  annulus plan --tokens 8192 --memory 8                             the default model on ranks of 8 GiB
  annulus plan --model synthetic:405B --tokens 1000000 --gpu H100-80G
  annulus plan --model DIR --tokens 131072 --gpu H200-141G --ranks-per-node 8
For each TP inside a node: the fewest CP ranks that hold weights, KV and buffers, and how many tokens they hold at most.
A model that is not here yet: its shape (synthetic:8B) or its config.json (synthetic:PATH). Exit code 1: nothing fits.)";

// What a GPU reports as its memory, less what a rank cannot have.
constexpr double kRuntimeGib = kContextGib + kLibrariesGib;
const std::map<std::string, double>& gpus() {
  static const std::map<std::string, double> kGpus = {{"A100-40G", 40.0 - kRuntimeGib},
                                                      {"A100-80G", 80.0 - kRuntimeGib},
                                                      {"H100-80G", 79.6 - kRuntimeGib},
                                                      {"H200-141G", 140.4 - kRuntimeGib}};
  return kGpus;
}

struct PlanFlags {
  std::string model, gpu, precision = "default";
  int64_t tokens = 0, chunk_tokens = 32768, workspace_mib = 256;
  double memory_gib = 0;
  int ranks_per_node = 8, most_ranks = 1024;
};

int refuse(const std::string& line) {
  std::fprintf(stderr, "annulus plan: %s\n", one_line(line).c_str());
  return 2;
}

void print(const Layout& layout, double memory_bytes, bool least) {
  const RankMemory& m = layout.memory;
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / kGib; };
  std::printf("%4d %5d %6d %9.2f %8.2f %12.2f %10.2f %8.2f %5.0f%% %13lld%s\n",
              layout.question.topology.tp, layout.question.topology.cp, layout.ranks(),
              gib(m.weight_bytes), gib(m.kv_bytes), gib(m.activation_bytes), gib(m.workspace_bytes),
              gib(m.total()), 100 * static_cast<double>(m.total()) / memory_bytes,
              static_cast<long long>(layout.most_tokens), least ? "  <- fewest ranks" : "");
}

int plan(const PlanFlags& flags) {
  double memory_gib = flags.memory_gib;
  if (!flags.gpu.empty()) {
    const auto it = gpus().find(flags.gpu);
    if (it == gpus().end())
      return refuse(absl::StrCat(
          "--gpu ", flags.gpu, " is not known; there are ",
          absl::StrJoin(gpus(), ", ", [](auto* out, auto& g) { absl::StrAppend(out, g.first); }),
          ", or give --memory GIB"));
    if (memory_gib <= 0) memory_gib = it->second;
  }
  if (memory_gib <= 0) return refuse("say what a rank has: --gpu H100-80G, or --memory GIB");
  const auto precision = parse_precision(flags.precision);
  if (!precision.ok()) return refuse(std::string(precision.status().message()));
  const std::string path = flags.model.empty() ? default_model_path() : flags.model;
  const auto checkpoint = parallel::Checkpoint::open(path);
  if (!checkpoint.ok()) return refuse(std::string(checkpoint.status().message()));
  const parallel::LlamaConfig& config = checkpoint->config();

  const double memory_bytes = memory_gib * kGib;
  MemoryQuestion question;
  question.context = flags.tokens > 0 ? flags.tokens : config.context;
  question.precision = *precision;
  question.gpu = !flags.gpu.empty();
  question.chunk_tokens = flags.chunk_tokens;
  question.workspace_limit_bytes = flags.workspace_mib << 20;
  const std::vector<Layout> layouts =
      layouts_that_fit(*checkpoint, question, memory_bytes,
                       {.most_tp = flags.ranks_per_node, .most_ranks = flags.most_ranks});
  std::printf("%s, %lld tokens, ranks of %.1f GiB%s, chunks of at most %lld tokens, precision %s\n",
              config.name.c_str(), static_cast<long long>(question.context), memory_gib,
              flags.gpu.empty() ? "" : absl::StrCat(" (", flags.gpu, ")").c_str(),
              static_cast<long long>(flags.chunk_tokens), flags.precision.c_str());
  if (layouts.empty()) {
    for (const int tp : parallel::valid_tp(config)) {
      if (tp <= flags.ranks_per_node) question.topology = {tp, 1};
    }
    while (question.topology.world() * 2 <= flags.most_ranks) question.topology.cp *= 2;
    const RankMemory most = parallel::rank_memory(*checkpoint, question);
    std::printf(
        "no layout of up to %d ranks with TP up to %d fits: with TP %d x CP %d a rank needs %.1f "
        "GiB of weights and %.1f GiB besides; take ranks with more memory, or fewer tokens\n",
        flags.most_ranks, flags.ranks_per_node, question.topology.tp, question.topology.cp,
        static_cast<double>(most.weight_bytes) / kGib,
        static_cast<double>(most.total() - most.weight_bytes) / kGib);
    return 1;
  }
  const Layout* const least = fewest_ranks(layouts);
  std::printf("GiB a rank:\n%4s %5s %6s %9s %8s %12s %10s %8s %6s %13s\n", "TP", "CP", "ranks",
              "weights", "KV", "activations", "workspace", "total", "of it", "most tokens");
  for (const Layout& layout : layouts) print(layout, memory_bytes, &layout == least);
  if (question.context > config.trained_context)
    std::printf(
        "the model was trained for %lld tokens: serving more takes --context and "
        "--rope-scaling\n",
        static_cast<long long>(config.trained_context));
  std::printf("annulus serve --model %s --tp %d --cp %d --context %lld%s\n", path.c_str(),
              least->question.topology.tp, least->question.topology.cp,
              static_cast<long long>(question.context), flags.gpu.empty() ? "" : " --device cuda");
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, Command& run) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App& sub = *app.add_subcommand("plan", "Which layouts hold a model and a context");
  sub.footer(kExamples);
  sub.add_option("--model", flags->model, "file, folder or synthetic:SHAPE")
      ->default_str("SmolLM2-135M-Instruct from deploy/fetch-model");
  sub.add_option("--tokens", flags->tokens, "of all sequences together; default: the context")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 36));
  sub.add_option("--gpu", flags->gpu, "of a rank: A100-40G, A100-80G, H100-80G, H200-141G");
  sub.add_option("--memory", flags->memory_gib, "GiB a rank may take (with or without --gpu)")
      ->check(CLI::Range(0.001, 1e6));
  sub.add_option("--precision", flags->precision, "default or fp32")->capture_default_str();
  sub.add_option("--ranks-per-node", flags->ranks_per_node, "TP stays inside a node")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  sub.add_option("--most-ranks", flags->most_ranks, "of the whole engine")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  sub.add_option("--chunk-tokens", flags->chunk_tokens, "of a prompt in one step")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  sub.add_option("--workspace-mib", flags->workspace_mib, "as of serve")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  sub.callback([flags, &run] { run = [flags] { return plan(*flags); }; });
}

}  // namespace annulus::server
