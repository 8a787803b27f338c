// SPDX-License-Identifier: Apache-2.0
#include "bench/rank_of.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "bench/simulate_cost.h"

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

// Copies that stand in for peers.
bool stands_in(Phase phase) {
  return phase == Phase::kSend || phase == Phase::kWait;
}

double visits(const RankOfOptions& o, const parallel::LlamaConfig& config) {
  return double{static_cast<double>(config.layers)} * o.topology.cp;
}

}  // namespace

double linear_flop(const parallel::LlamaConfig& c, int32_t tp, int64_t rows) {
  const double d = c.dim, q = double{1} * c.heads * c.head_dim / tp,
               kv = double{1} * c.kv_heads * c.head_dim / tp, ffn = double{1} * c.ffn / tp;
  return 2.0 * static_cast<double>(rows) * c.layers * (d * (q + 2 * kv) + q * d + 3 * d * ffn);
}

absl::StatusOr<RankOfModel> model_links(const RankOfOptions& options, const RankOfReport& report) {
  auto machine = load_machine(options.machine);
  if (!machine.ok()) return machine.status();
  Cost cost(*machine, options.topology);
  const int32_t me = options.cp_rank, next = (me + 1) % options.topology.cp;
  RankOfModel model;
  for (const RankOfStep& step : report.steps) {
    if (step.tp.sums > 0) {
      const auto n = static_cast<double>(step.tp.sums);
      model.sums += n * cost.all_reduce_us(static_cast<double>(step.tp.sum_floats) / n);
    }
    if (step.cp.hops > 0) {
      // A hop is in flight while one payload is attended to.
      const auto n = static_cast<double>(step.cp.hops);
      const double visit = step.phase_us[index(Phase::kAttention)] / visits(options, report.config);
      const double wire = cost.wire_us(static_cast<double>(step.cp.hop_bytes) / n, me, next);
      model.hops += n * (cost.hop_us() + std::max(0.0, wire - visit * machine->overlap));
    }
    if (step.cp.collectives > 0) {
      const auto n = static_cast<double>(step.cp.collectives);
      const double bytes = static_cast<double>(step.cp.collective_bytes) / n;
      const bool local = cost.same_node(0, options.topology.cp - 1);
      model.collectives += n * (cost.collective_us() +
                                cost.collective_wire_us(local ? bytes : 0, local ? 0 : bytes));
    }
  }
  return model;
}

void RankOfFlags::add_to(CLI::App& app) {
  RankOfOptions& o = options;
  app.add_option("--model", o.model, "synthetic:SHAPE, a file or a folder")->capture_default_str();
  app.add_option("--tp", o.topology.tp, "ranks that share a layer")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--cp", o.topology.cp, "ranks that share the prompt")
      ->check(CLI::Range(1, 256))
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
}

absl::Status RankOfFlags::apply() {
  const auto parsed = parallel::parse_variant(variant);
  if (!parsed.ok()) return parsed.status();
  options.variant = *parsed;
  if (precision == "fp32") options.rank.precision = kernels::Precision::kF32;
  if (options.cp_rank >= options.topology.cp)
    return absl::InvalidArgumentError(
        absl::StrCat("--cp-rank ", options.cp_rank, " is not below --cp ", options.topology.cp));
  return load_machine(options.machine).status();
}

absl::Status print_rank_of(const RankOfOptions& o, const RankOfReport& report,
                           const std::string& device, double limit_tflop_s) {
  const auto model = model_links(o, report);
  if (!model.ok()) return model.status();
  PhaseClock::Times us{};
  double linear = 0, attend = 0, computed = 0, copies = 0, work = 0;
  Traffic tp, cp;
  for (const RankOfStep& step : report.steps) {
    for (size_t p = 0; p < us.size(); ++p) us[p] += step.phase_us[p];
    linear += step.linear_flop;
    attend += step.attend_flop;
    tp.sum_floats += step.tp.sum_floats;
    cp.hop_bytes += step.cp.hop_bytes;
    cp.collective_bytes += step.cp.collective_bytes;
  }
  for (size_t p = 0; p < us.size(); ++p)
    (stands_in(static_cast<Phase>(p)) ? copies : computed) += us[p];
  double linear_us = 0;
  for (size_t p = 0; p < us.size(); ++p)
    if (is_linear(static_cast<Phase>(p))) linear_us += us[p];
  work = linear + attend;

  std::printf(
      "# rank-of: %s, TP %d x CP %d, CP rank %d, %lld tokens in chunks of %lld, %s, on %s\n",
      report.config.name.c_str(), o.topology.tp, o.topology.cp, o.cp_rank,
      static_cast<long long>(o.tokens), static_cast<long long>(o.chunk_tokens), name(o.variant),
      device.c_str());
  std::printf("# %.1f GB of weights in %.1f s; %lld KV rows, %.2f GB; %zu steps in %.2f s\n",
              static_cast<double>(report.weight_bytes) / 1e9, report.load_s,
              static_cast<long long>(report.kv_rows), static_cast<double>(report.kv_bytes) / 1e9,
              report.steps.size(), report.wall_s);
  std::printf("%-26s %11s %7s %10s\n", "measured", "ms", "share", "TFLOP/s");
  for (size_t p = 0; p < us.size(); ++p) {
    const auto phase = static_cast<Phase>(p);
    if (us[p] <= 0 || stands_in(phase)) continue;
    std::printf("%-26s %11.2f %6.1f%%", name(phase), us[p] / 1e3, 100 * us[p] / computed);
    if (phase == Phase::kAttention) std::printf(" %10.4g", attend / us[p] / 1e6);
    std::printf("\n");
  }
  std::printf("%-26s %11.2f %6.1f%% %10.4g\n", "(linear layers together)", linear_us / 1e3,
              100 * linear_us / computed, linear / linear_us / 1e6);
  std::printf("%-26s %11.2f\n", "copies in place of peers", copies / 1e3);
  std::printf("modelled on %s (%.2f GB of sums, %.2f GB of hops, %.2f GB of collectives)\n",
              o.machine.c_str(), static_cast<double>(tp.sum_floats) * 4e-9,
              static_cast<double>(cp.hop_bytes) / 1e9,
              static_cast<double>(cp.collective_bytes) / 1e9);
  std::printf("%-26s %11.2f\n%-26s %11.2f\n%-26s %11.2f\n", "TP sums", model->sums / 1e3,
              "hops beyond attention", model->hops / 1e3, "collectives", model->collectives / 1e3);
  const double total = computed + model->sums + model->hops + model->collectives;
  std::printf("prefill %.3f s (%.3f measured, %.3f modelled), %.4g TFLOP/s of this rank",
              total / 1e6, computed / 1e6, (total - computed) / 1e6, work / total / 1e6);
  if (limit_tflop_s > 0)
    std::printf(", %.1f %% of the %.4g TFLOP/s that it multiplies at",
                100 * work / total / 1e6 / limit_tflop_s, limit_tflop_s);
  std::printf("\n");
  return absl::OkStatus();
}

}  // namespace annulus::bench
