// SPDX-License-Identifier: Apache-2.0
#include "bench/policy.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bench/rank_flags.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks

struct Sweep {
  int total = 4096, repeats = 5;
  std::vector<double> miss_percent = {1, 2.5, 5, 10, 20, 40, 70, 100};
};

// Variants one after the other, again and again, on the same cached tokens: what they add is
// truncated away.
absl::Status measure_row(RankGroup& group, int32_t slot, int32_t cached, int32_t fresh, int repeats,
                         std::vector<double> (&times)[kVariants], int64_t (&bytes)[kVariants]) {
  const int32_t vocab = group.config().vocab;
  StepPlan prepare;
  if (cached > 0)
    prepare = append_plan(slot, 0, cached, Variant::kPassKv, Placement::kPrompt, vocab);
  prepare.ops = {admit_op(slot)};
  if (auto r = group.run(prepare); !r.ok()) return r.status();
  for (int repeat = 0; repeat <= repeats; ++repeat) {  // the first warms up
    for (const Variant variant : kAllVariants) {
      StepPlan plan = append_plan(slot, cached, fresh, variant, Placement::kPrompt, vocab);
      plan.ops = {slot_op(Op::Kind::kTruncate, slot, cached)};
      const auto results = group.run(plan);
      if (!results.ok()) return results.status();
      const size_t v = static_cast<size_t>(variant);
      if (repeat > 0) times[v].push_back(attention_us(*results));
      bytes[v] = 0;
      for (const StepResult& r : *results) bytes[v] = std::max(bytes[v], r.groups[0].bytes_sent);
    }
  }
  StepPlan end;
  end.ops = {slot_op(Op::Kind::kRelease, slot)};
  return group.run(end).status();
}

absl::Status run(const RankFlags& flags, const Sweep& sweep) {
  absl::StatusOr<std::unique_ptr<RankGroup>> started = RankGroup::start(flags.options);
  if (!started.ok()) return started.status();
  RankGroup& group = **started;
  const MachineProfile& p = group.policy().profile;
  std::printf(
      "# annulus-bench policy: tp %d x cp %d, %d new + cached tokens, %d interleaved repeats, "
      "medians\n",
      flags.options.topology.tp, flags.options.topology.cp, sweep.total, sweep.repeats);
  std::printf(
      "# measured: attention %.1f GFLOP/s, KV read %.2f GB/s, link %.1f MB/s and %.1f us a hop, "
      "overlap %.2f\n",
      p.attend_flops_per_us / 1e3, p.kv_read_bytes_per_us / 1e3, p.link_bytes_per_us,
      p.link_latency_us, p.overlap);
  std::printf(
      "# attention of a step, all layers, slowest rank: MB sent, predicted ms, measured ms\n");
  std::printf("%6s %6s %6s |%27s |%27s |%27s | %-8s %-8s %6s %s\n", "miss%", "cached", "new",
              "pass-kv MB pred meas", "pass-q MB pred meas", "gather-q MB pred meas", "chosen",
              "fastest", "loss%", "paper 1, 5");
  int32_t slot = 0;
  for (const double miss : sweep.miss_percent) {
    const int32_t fresh =
        std::clamp(static_cast<int32_t>(std::lround(sweep.total * miss / 100)), 1, sweep.total);
    const int32_t cached = sweep.total - fresh;
    std::vector<double> times[kVariants];
    int64_t bytes[kVariants] = {};
    if (absl::Status s = measure_row(group, slot++, cached, fresh, sweep.repeats, times, bytes);
        !s.ok())
      return s;
    const Load load{fresh, cached};
    const auto predictions = predict(group.policy(), {&load, 1});
    const Variant chosen = choose(group.policy(), {&load, 1});
    Variant fastest = Variant::kPassKv;
    double measured[kVariants];
    for (const Variant v : kAllVariants) {
      measured[static_cast<size_t>(v)] = median(times[static_cast<size_t>(v)]);
      if (measured[static_cast<size_t>(v)] < measured[static_cast<size_t>(fastest)]) fastest = v;
    }
    std::printf("%6.1f %6d %6d |", miss, cached, fresh);
    for (size_t v = 0; v < kVariants; ++v) {
      std::printf(" %8.2f %8.1f %8.1f |", static_cast<double>(bytes[v]) / 1e6,
                  predictions[v].us / 1e3, measured[v] / 1e3);
    }
    const double loss =
        100 * (measured[static_cast<size_t>(chosen)] / measured[static_cast<size_t>(fastest)] - 1);
    std::printf(" %-8s %-8s %6.1f %s, %s\n", name(chosen), name(fastest), loss,
                name(paper_algorithm_1(group.policy(), load)),
                name(paper_algorithm_5(group.policy(), load)));
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace

int bench_policy(int argc, char** argv) {
  RankFlags flags;
  Sweep sweep;
  CLI::App app(
      "Sweeps the KV-cache miss rate: bytes, prediction, choice and measured times of every "
      "variant.",
      "annulus-bench policy");
  flags.add_to(app);
  app.add_option("--total", sweep.total, "cached + new tokens")->check(CLI::PositiveNumber);
  app.add_option("--miss", sweep.miss_percent, "miss rates in percent")->delimiter(',');
  app.add_option("--repeats", sweep.repeats, "measured repeats")->check(CLI::PositiveNumber);
  app.footer(
      "  annulus-bench policy --model M --cp 2 --link-mbit 400      (root: the link is shaped)");
  CLI11_PARSE(app, argc, argv);
  absl::Status status = flags.apply();
  if (status.ok()) status = run(flags, sweep);
  if (status.ok()) return 0;
  std::fprintf(stderr, "annulus-bench policy: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace annulus::bench
