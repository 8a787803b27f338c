// SPDX-License-Identifier: Apache-2.0
#include "bench/rank_of.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/simulate_cost.h"
#include "parallel/comm_ids.h"
#include "parallel/model/synthetic.h"

namespace annulus::bench {
namespace {

using kernels::Phase;
using kernels::PhaseClock;

size_t index(Phase phase) {
  return static_cast<size_t>(phase);
}

bool is_linear(Phase phase) {
  return phase == Phase::kQkv || phase == Phase::kOutput || phase == Phase::kGateUp ||
         phase == Phase::kDown;
}

absl::Status cannot_write(const std::string& path) {
  return absl::InvalidArgumentError(
      absl::StrCat("--json ", path, " cannot be written: is its folder there?"));
}

}  // namespace

std::string rank_of_goal(const RankOfOptions& o, const parallel::LlamaConfig& config,
                         double prefill_s, double of_limit) {
  const bool is_it = o.tokens == 1000000 && o.topology.tp == 8 && o.topology.cp == 16 &&
                     config.dim == 16384 && config.layers == 126 && of_limit > 0;
  if (!is_it) return "";
  return absl::StrFormat(
      "goal at 1,000,000 tokens: at most 70 s: %s (%.1f s); at least 63 %% of the measured peak: "
      "%s (%.1f %%)",
      prefill_s <= 70 ? "met" : "MISSED", prefill_s, of_limit >= 0.63 ? "met" : "MISSED",
      100 * of_limit);
}

absl::StatusOr<RankOfModel> model_links(const RankOfOptions& options, const RankOfReport& report) {
  auto machine = load_machine(options.machine);
  if (!machine.ok()) return machine.status();
  const Cost cost(*machine, options.topology);
  const parallel::MachineProfile links = cost.profile(0);
  const double visits = static_cast<double>(report.config.layers) * options.topology.cp;
  RankOfModel model;
  for (const RankOfStep& step : report.steps) {
    if (step.tp.sums > 0) {
      const auto n = static_cast<double>(step.tp.sums);
      model.sums += n * cost.all_reduce_us(static_cast<double>(step.tp.sum_floats) / n);
    }
    if (step.cp.hops > 0) {
      // A hop is in flight while one payload is attended to.
      const auto n = static_cast<double>(step.cp.hops);
      const double flight = links.link_latency_us +
                            static_cast<double>(step.cp.hop_bytes) / n / links.link_bytes_per_us;
      const double visit = step.phase_us[index(Phase::kAttention)] / visits;
      model.hops += n * parallel::exposed_hop_us(links, flight, visit);
    }
    model.collectives +=
        static_cast<double>(step.cp.collectives) * links.collective_overhead_us +
        static_cast<double>(step.cp.collective_bytes) / links.collective_bytes_per_us;
  }
  return model;
}

void RankOfFlags::add_to(CLI::App& app) {
  RankOfOptions& o = options;
  app.add_option("--model", o.model,
                 "synthetic:SHAPE, a file or a folder; 405b: synthetic:405B-FP8, 8b: synthetic:8B")
      ->capture_default_str();
  app.add_option("--tp", o.topology.tp, "ranks that share a layer")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--cp", o.topology.cp, "ranks that share the prompt")
      ->check(CLI::Range(1, parallel::kMaxGroupSize))
      ->capture_default_str();
  app.add_option("--cp-rank", o.cp_rank, "which of them; 0 has the answer's logits too")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--tokens", o.tokens, "of the prompt")
      ->check(CLI::Range(int64_t{1}, parallel::kMaxPositions))
      ->capture_default_str();
  app.add_option("--chunk-tokens", o.chunk_tokens, "of the prompt in one step")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--variant", variant, "pass-kv, pass-q or gather-q")->capture_default_str();
  app.add_option("--precision", precision, "default or fp32")
      ->check(CLI::IsMember({"default", "fp32"}))
      ->capture_default_str();
  app.add_option("--machine", o.machine,
                 "whose links are modelled: a name of annulus-bench simulate, or a file")
      ->capture_default_str();
  app.add_option("--json", o.json, "append the result to this file, a line of JSON");
}

absl::Status RankOfFlags::apply() {
  const auto parsed = parallel::parse_variant(variant);
  if (!parsed.ok()) return parsed.status();
  options.variant = *parsed;
  std::error_code unreadable;
  if (options.model.find(':') == std::string::npos &&
      !std::filesystem::exists(options.model, unreadable)) {
    const std::string shape = absl::AsciiStrToUpper(options.model);
    if (!parallel::synthetic_config(shape, {}).ok())
      return absl::NotFoundError(
          absl::StrCat("--model ", options.model,
                       " is no file, folder or shape; generated models are synthetic:135M, 1B, 8B, "
                       "70B, 405B, and synthetic:405B-FP8 is the published checkpoint's"));
    options.model = std::string(parallel::kSyntheticPrefix) + shape;
    if (shape == "405B") options.model += "-FP8";
  }
  if (precision == "fp32") options.rank.precision = kernels::Precision::kF32;
  if (options.cp_rank >= options.topology.cp)
    return absl::InvalidArgumentError(
        absl::StrCat("--cp-rank ", options.cp_rank, " is not below --cp ", options.topology.cp));
  if (!options.json.empty() && !std::ofstream(options.json, std::ios::app))
    return cannot_write(options.json);  // before the run, which takes minutes
  return load_machine(options.machine).status();
}

absl::Status print_rank_of(const RankOfOptions& o, const RankOfReport& report,
                           const std::string& device, double limit_tflop_s,
                           const char* limit_type) {
  const auto model = model_links(o, report);
  if (!model.ok()) return model.status();
  PhaseClock::Times us{}, flop{};
  Traffic tp, cp;
  for (const RankOfStep& step : report.steps) {
    for (size_t p = 0; p < us.size(); ++p) {
      us[p] += step.phase_us[p];
      flop[p] += step.demands[p].flop;
    }
    tp.sum_floats += step.tp.sum_floats;
    cp.hop_bytes += step.cp.hop_bytes;
    cp.collective_bytes += step.cp.collective_bytes;
  }
  const double copies = std::exchange(us[index(Phase::kWait)], 0);
  const double computed = std::accumulate(us.begin(), us.end(), 0.0);
  double linear_us = 0, linear = 0;
  for (size_t p = 0; p < us.size(); ++p) {
    if (!is_linear(static_cast<Phase>(p))) continue;
    linear_us += us[p];
    linear += flop[p];
  }
  const double work = linear + flop[index(Phase::kAttention)];

  std::printf(
      "# rank-of: %s, TP %d x CP %d, CP rank %d, %lld tokens in chunks of %lld, %s, on %s\n",
      report.config.name.c_str(), o.topology.tp, o.topology.cp, o.cp_rank,
      static_cast<long long>(o.tokens), static_cast<long long>(o.chunk_tokens), name(o.variant),
      device.c_str());
  std::printf("# %.1f GB of weights in %.1f s; %lld KV rows, %.2f GB; %zu steps in %.2f s\n",
              static_cast<double>(report.weight_bytes) / 1e9, report.load_s,
              static_cast<long long>(report.kv_rows), static_cast<double>(report.kv_bytes) / 1e9,
              report.steps.size(), report.wall_s);
  const auto print = [&](const char* what, double time, double done) {
    std::printf("%-26s %11.2f %6.1f%%", what, time / 1e3, 100 * time / computed);
    if (done > 0) std::printf(" %10.4g", done / time / 1e6);
    std::printf("\n");
  };
  std::printf("%-26s %11s %7s %10s\n", "measured", "ms", "share", "TFLOP/s");
  for (size_t p = 0; p < us.size(); ++p) {
    const auto phase = static_cast<Phase>(p);
    // The head multiplies a row, once a prompt.
    if (us[p] > 0) print(name(phase), us[p], phase == Phase::kHead ? 0 : flop[p]);
  }
  print("(linear layers together)", linear_us, linear);
  std::printf("%-26s %11.2f\n", "copies in place of peers", copies / 1e3);
  std::printf("modelled on %s (%.2f GB of sums, %.2f GB of hops, %.2f GB of collectives)\n",
              o.machine.c_str(), static_cast<double>(tp.sum_floats) * 4e-9,
              static_cast<double>(cp.hop_bytes) / 1e9,
              static_cast<double>(cp.collective_bytes) / 1e9);
  std::printf("%-26s %11.2f\n%-26s %11.2f\n%-26s %11.2f\n", "TP sums", model->sums / 1e3,
              "hops beyond attention", model->hops / 1e3, "collectives", model->collectives / 1e3);
  const double total = computed + model->sums + model->hops + model->collectives;
  const double tflop_s = work / total / 1e6;
  const double of_limit = limit_tflop_s > 0 ? tflop_s / limit_tflop_s : 0;
  std::printf("prefill %.3f s (%.3f measured, %.3f modelled), %.4g TFLOP/s of this rank",
              total / 1e6, computed / 1e6, (total - computed) / 1e6, tflop_s);
  if (limit_tflop_s > 0)
    std::printf(", %.1f %% of the %.4g TFLOP/s that it multiplies at in %s", 100 * of_limit,
                limit_tflop_s, limit_type);
  std::printf("\n");
  const std::string goal = rank_of_goal(o, report.config, total / 1e6, of_limit);
  if (!goal.empty()) std::printf("%s\n", goal.c_str());
  for (const RankOfDecode& decode : report.decode)
    std::printf(
        "decode, %d step%s under way%s: %.3f ms a step, the device idle for %.3f ms of it, %lld of "
        "%d steps replayed\n",
        decode.under_way, decode.under_way == 1 ? "" : "s", decode.graphs ? ", CUDA graphs" : "",
        decode.step_us / 1e3, decode.gap_us / 1e3, static_cast<long long>(decode.replayed),
        o.decode_steps);
  if (o.json.empty()) return absl::OkStatus();
  nlohmann::json line = {{"model", o.model},
                         {"device", device},
                         {"tp", o.topology.tp},
                         {"cp", o.topology.cp},
                         {"cp_rank", o.cp_rank},
                         {"tokens", o.tokens},
                         {"chunk_tokens", o.chunk_tokens},
                         {"variant", name(o.variant)},
                         {"prefill_s", total / 1e6},
                         {"measured_s", computed / 1e6},
                         {"tp_sums_s", model->sums / 1e6},
                         {"exposed_hops_s", model->hops / 1e6},
                         {"collectives_s", model->collectives / 1e6},
                         {"tflop_s", tflop_s},
                         {"limit_tflop_s", limit_tflop_s},
                         {"limit_type", limit_type},
                         {"goal", goal}};
  for (size_t p = 0; p < us.size(); ++p)
    if (us[p] > 0) line["phase_s"][name(static_cast<Phase>(p))] = us[p] / 1e6;
  for (const RankOfDecode& decode : report.decode)
    line["decode"].push_back({{"under_way", decode.under_way},
                              {"graphs", decode.graphs},
                              {"step_ms", decode.step_us / 1e3},
                              {"idle_ms", decode.gap_us / 1e3},
                              {"replayed", decode.replayed}});
  if (!(std::ofstream(o.json, std::ios::app) << line.dump() << "\n").flush())
    return cannot_write(o.json);
  return absl::OkStatus();
}

}  // namespace annulus::bench
