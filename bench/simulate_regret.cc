// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_regret.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/progress_bar.h"

namespace annulus::bench {

using parallel::Load;
using parallel::Variant;

void SimulatedRegret::add_to(CLI::App& app) {
  machines_ = built_in_machines();
  command_ = app.add_subcommand(
      "regret",
      "what each way of choosing a variant loses to the fastest: machines x CP x lengths "
      "x miss rates");
  command_->add_option("--machines", machines_, "machine files or names")
      ->delimiter(',')
      ->capture_default_str();
  command_->add_option("--model", model_,
                       "default: llama-405b where a node has 8 ranks, else smollm2-135m");
  command_->add_option("--tp", tp_, "default: 8 where a node has 8 ranks, else 1")
      ->check(CLI::Range(1, kMostRanks));
  command_->add_option("--cp", cps_, "context-parallel ranks")
      ->delimiter(',')
      ->check(CLI::Range(2, kMostRanks))
      ->capture_default_str();
  command_->add_option("--totals", totals_, "cached + new tokens")
      ->delimiter(',')
      ->check(CLI::Range(16, 1 << 24))
      ->capture_default_str();
  command_->add_option("--miss", miss_percent_, "miss rates in percent")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  command_->add_flag("--rows", each_row_, "prints every row");
}

absl::Status SimulatedRegret::run() {
  std::printf(
      "# attention of a prompt in virtual time: the step less linear layers, TP sums and norms, "
      "ms\n");
  for (const std::string& name : machines_) {
    Sweep sweep;
    sweep.flags.machine_name = name;
    sweep.flags.model_name = model_;
    absl::StatusOr<Machine> machine = load_machine(name);
    if (!machine.ok()) return machine.status();
    const bool wide = machine->gpus_per_node >= 8;
    if (model_.empty()) sweep.flags.model_name = wide ? "llama-405b" : "smollm2-135m";
    sweep.tp = tp_ > 0 ? tp_ : wide ? 8 : 1;
    if (absl::Status s = sweep.flags.load(); !s.ok()) return s;
    std::printf("\n# %s on %s, TP %d\n", sweep.flags.model.config.name.c_str(),
                sweep.flags.machine.name.c_str(), sweep.tp);
    if (each_row_) {
      std::printf("%4s %8s %7s | %11s %11s %11s | %-9s %-9s %8s  %s\n", "CP", "total", "miss%",
                  "pass-kv", "pass-q", "gather-q", "fastest", "ours", "regret", "Algorithms 1, 5");
    }
    for (const int32_t cp : cps_) {
      if (absl::Status s = rows_of(sweep, cp); !s.ok()) return s;
    }
    print(sweep.choosers, sweep.rows);
    std::fflush(stdout);
  }
  if (machines_.size() > 1) {
    std::printf("\n# all machines\n");
    print(choosers_, rows_);
  }
  return absl::OkStatus();
}

absl::Status SimulatedRegret::rows_of(Sweep& sweep, int32_t cp) {
  ProgressBar bar("regret");
  const auto rows = static_cast<double>(totals_.size() * miss_percent_.size());
  int done = 0;
  for (const int64_t total : totals_) {
    for (const double miss : miss_percent_) {
      bar.show(done++ / rows, absl::StrFormat("%s, CP %d, %d tokens, miss %g %%",
                                              sweep.flags.machine.name, cp, total, miss));
      if (each_row_) bar.clear();
      if (absl::Status s = row(sweep, cp, total, miss); !s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

absl::Status SimulatedRegret::row(Sweep& sweep, int32_t cp, int64_t total, double miss_percent) {
  const SimFlags& flags = sweep.flags;
  const parallel::Topology t{sweep.tp, cp};
  Workload work;
  work.prompt = std::max<int64_t>(2, std::llround(static_cast<double>(total) * miss_percent / 100));
  work.cached = total - work.prompt;
  std::array<double, parallel::kVariants> us{};
  for (size_t v = 0; v < us.size(); ++v) {
    work.variant = static_cast<Variant>(v);
    const absl::StatusOr<Simulated> run = simulate(flags.model, flags.machine, t, work);
    if (!run.ok()) return run.status();
    us[v] = run->attention_us();
  }
  work.variant.reset();
  const absl::StatusOr<Simulated> ours = simulate(flags.model, flags.machine, t, work);
  if (!ours.ok()) return ours.status();

  const parallel::PolicyInput policy = policy_of(flags.model, flags.machine, t, work);
  const Load load{work.prompt, work.cached};
  const auto fastest = static_cast<Variant>(std::min_element(us.begin(), us.end()) - us.begin());
  const double best = us[static_cast<size_t>(fastest)];
  std::string picks;
  for (size_t i = 0; i < choosers_.size(); ++i) {
    const Variant pick = choosers_[i].choose(policy, load);
    const double chosen = i == 0 ? ours->attention_us() : us[static_cast<size_t>(pick)];
    choosers_[i].add(chosen / best - 1);
    sweep.choosers[i].add(chosen / best - 1);
    if (i + 2 >= choosers_.size()) picks += absl::StrCat(" ", parallel::name(pick));
  }
  ++sweep.rows;
  ++rows_;
  if (!each_row_) return absl::OkStatus();
  std::printf("%4d %8lld %7.2f | %11.3f %11.3f %11.3f | %-9s %-9s %7.1f%% %s\n", cp,
              static_cast<long long>(total), miss_percent, us[0] / 1e3, us[1] / 1e3, us[2] / 1e3,
              parallel::name(fastest), variants_text(ours->prefill[0].variants).c_str(),
              100 * (ours->attention_us() / best - 1), picks.c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

}  // namespace annulus::bench
