// SPDX-License-Identifier: Apache-2.0
#include "bench/policy.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bench/command_line.h"
#include "bench/limits.h"
#include "bench/rank_flags.h"
#include "bench/variant_times.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks

struct Sweep {
  int total = 4096, repeats = 5;
  std::vector<double> miss_percent = {1, 2.5, 5, 10, 20, 40, 70, 100};
};

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
      p.small_hop_us(), p.overlap);
  std::printf(
      "# limits of a rank, all at once: %.1f GFLOP/s, read %.1f GB/s, and the link\n"
      "# attention of a step, all layers, slowest rank: MB sent, predicted ms, measured ms\n"
      "# least: of the chosen variant, were its slowest part at its limit and the others hidden\n",
      group.limits().flops_per_us / 1e3, group.limits().read_bytes_per_us / 1e3);
  std::printf("%6s %6s %6s |%27s |%27s |%27s | %-8s %-8s %6s %9s %-8s %8s %s\n", "miss%", "cached",
              "new", "pass-kv MB pred meas", "pass-q MB pred meas", "gather-q MB pred meas",
              "chosen", "fastest", "loss%", "least ms", "by", "reached", "paper 1, 5");
  int32_t slot = 0;
  for (const double miss : sweep.miss_percent) {
    const int32_t fresh =
        std::clamp(static_cast<int32_t>(std::lround(sweep.total * miss / 100)), 1, sweep.total);
    const int32_t cached = sweep.total - fresh;
    const auto times = measure_variants(group, slot++, cached, fresh, sweep.repeats);
    if (!times.ok()) return times.status();
    const Load load{fresh, cached};
    const auto predictions = predict(group.policy(), {&load, 1});
    const Variant chosen = choose(group.policy(), {&load, 1});
    Variant fastest = Variant::kPassKv;
    double measured[kVariants];
    for (const Variant v : kAllVariants) {
      measured[static_cast<size_t>(v)] = median(times->us[static_cast<size_t>(v)]);
      if (measured[static_cast<size_t>(v)] < measured[static_cast<size_t>(fastest)]) fastest = v;
    }
    std::printf("%6.1f %6d %6d |", miss, cached, fresh);
    for (size_t v = 0; v < kVariants; ++v) {
      std::printf(" %8.2f %8.1f %8.1f |", static_cast<double>(times->bytes[v]) / 1e6,
                  predictions[v].us / 1e3, measured[v] / 1e3);
    }
    const double loss =
        100 * (measured[static_cast<size_t>(chosen)] / measured[static_cast<size_t>(fastest)] - 1);
    const Bound least =
        bound(group.limits(),
              ring_demand(group.policy(), load, chosen,
                          static_cast<double>(times->bytes[static_cast<size_t>(chosen)])));
    std::printf(" %-8s %-8s %6.1f %9.2f %-8s %7.0f%% %s, %s\n", name(chosen), name(fastest), loss,
                least.us / 1e3, name(least.by),
                100 * least.us / measured[static_cast<size_t>(chosen)],
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
  flags.add_trace_to(app);
  app.add_option("--total", sweep.total, "cached + new tokens")->check(CLI::PositiveNumber);
  app.add_option("--miss", sweep.miss_percent, "miss rates in percent")->delimiter(',');
  app.add_option("--repeats", sweep.repeats, "measured repeats")->check(CLI::PositiveNumber);
  app.footer(
      "  annulus-bench policy --model M --cp 2 --link-mbit 400      (root: the link is shaped)");
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  absl::Status status = flags.apply();
  if (status.ok()) status = run(flags, sweep);
  return status.ok() ? 0 : report("policy", status);
}

}  // namespace annulus::bench
