// SPDX-License-Identifier: Apache-2.0
#include "bench/ring.h"

#include <algorithm>
#include <cstdio>

#include "bench/command_line.h"
#include "bench/limits.h"
#include "bench/rank_flags.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks

// One row of the table: the step's worst rank in every column.
void print_row(const char* phase, const RankGroup& group, const std::vector<StepResult>& results,
               int64_t cached, int64_t fresh) {
  const GroupReport& first = results[0].groups.at(0);
  const AttentionShape& shape = group.policy().shape;
  const int64_t ranks = group.state().cp;
  int64_t bytes = 0, least_kv = results[0].kv_rows, most_kv = 0, workspace = 0, kv_bytes = 0,
          resident = 0;
  double attend = 0, exposed = 0, slowest = 0;
  for (const StepResult& r : results) {
    const GroupReport& g = r.groups.at(0);
    bytes = std::max(bytes, g.bytes_sent);
    least_kv = std::min(least_kv, r.kv_rows);
    most_kv = std::max(most_kv, r.kv_rows);
    workspace = std::max(workspace, r.workspace_peak_bytes);
    kv_bytes = std::max(kv_bytes, r.kv_bytes);
    resident = std::max(resident, r.resident_bytes);
    attend = std::max<double>(attend, g.attend_us);
    exposed = std::max<double>(exposed, g.exposed_us);
    slowest = std::max<double>(slowest, g.attend_us + g.exposed_us);
  }
  // What the transfers would take if nothing hid them: every hop at the link's measured rate and
  // latency.
  const MachineProfile& profile = group.policy().profile;
  const auto hops = static_cast<double>((ranks - 1) * shape.layers);
  const double transfer =
      static_cast<double>(bytes) / profile.link_bytes_per_us + hops * profile.small_hop_us();
  const Bound least = bound(group.limits(), ring_demand(group.policy(), {fresh, cached},
                                                        first.variant, static_cast<double>(bytes)));
  std::printf(
      "%-8s %-8s %8lld %8lld %12lld %12lld %8.4f %7lld-%-7lld %8.2f %9.2f %9.1f %9.1f %9.1f "
      "%7.0f%% %9.1f %-8s %7.0f%%\n",
      phase, name(first.variant), static_cast<long long>(cached), static_cast<long long>(fresh),
      static_cast<long long>(bytes), static_cast<long long>(first.formula_bytes),
      static_cast<double>(bytes) / static_cast<double>(std::max<int64_t>(first.formula_bytes, 1)),
      static_cast<long long>(least_kv), static_cast<long long>(most_kv),
      static_cast<double>(workspace) / 1e6, static_cast<double>(kv_bytes) / 1e6,
      static_cast<double>(resident) / 1e6, attend / 1e3, exposed / 1e3,
      transfer > 0 ? 100 * std::clamp(1 - exposed / transfer, 0.0, 1.0) : 100.0, least.us / 1e3,
      name(least.by), 100 * least.us / slowest);
}

absl::Status run(const RankFlags& flags, const std::vector<int>& lengths, int decode_steps) {
  absl::StatusOr<std::unique_ptr<RankGroup>> started = RankGroup::start(flags.options);
  if (!started.ok()) return started.status();
  RankGroup& group = **started;
  const MachineProfile& p = group.policy().profile;
  std::printf("# annulus-bench ring: tp %d x cp %d, %d thread(s) a rank, %s\n",
              flags.options.topology.tp, flags.options.topology.cp, flags.options.rank.threads,
              flags.precision.c_str());
  std::printf(
      "# measured: attention %.1f GFLOP/s, KV read %.2f GB/s, link %.2f GB/s and %.1f us a hop, "
      "overlap %.2f\n",
      p.attend_flops_per_us / 1e3, p.kv_read_bytes_per_us / 1e3, p.link_bytes_per_us / 1e3,
      p.small_hop_us(), p.overlap);
  std::printf(
      "# limits of a rank, all at once: %.1f GFLOP/s, read %.1f GB/s, and the link\n"
      "# bytes: sent by the rank that sends most, all layers; formula: paper, with fp32 partials; "
      "hidden: share of\n"
      "# the transfers, at the measured link, that no rank waited for; least: attention of the "
      "step, were its\n"
      "# slowest part at its limit and the others hidden; reached: least over attend + wait\n",
      group.limits().flops_per_us / 1e3, group.limits().read_bytes_per_us / 1e3);
  std::printf("%-8s %-8s %8s %8s %12s %12s %8s %15s %8s %9s %9s %9s %9s %8s %9s %-8s %8s\n",
              "phase", "variant", "cached", "new", "bytes", "formula", "ratio", "KV rows/rank",
              "work MB", "KV MB", "rss MB", "attend ms", "wait ms", "hidden", "least ms", "by",
              "reached");
  int32_t slot = 0;
  for (const int length : lengths) {
    for (const Variant variant : kAllVariants) {
      const int32_t vocab = group.config().vocab;
      StepPlan prefill = append_plan(slot, 0, length, variant, Placement::kPrompt, vocab);
      prefill.ops = {admit_op(slot)};
      auto results = group.run(prefill);
      if (!results.ok()) return results.status();
      print_row("full", group, *results, 0, length);
      const int32_t more = std::max(length / 8, 1);
      results = group.run(append_plan(slot, length, more, variant, Placement::kPrompt, vocab));
      if (!results.ok()) return results.status();
      print_row("partial", group, *results, length, more);
      for (int i = 0; i < decode_steps; ++i) {
        results =
            group.run(append_plan(slot, length + more + i, 1, variant, Placement::kDecode, vocab));
        if (!results.ok()) return results.status();
      }
      if (decode_steps > 0)
        print_row("decode", group, *results, length + more + decode_steps - 1, 1);
      StepPlan end;
      end.ops = {slot_op(Op::Kind::kRelease, slot)};
      if (results = group.run(end); !results.ok()) return results.status();
      ++slot;
    }
  }
  return absl::OkStatus();
}

}  // namespace

int bench_ring(int argc, char** argv) {
  RankFlags flags;
  std::vector<int> lengths = {4096};
  int decode_steps = 8;
  CLI::App app("Bytes, balance, memory and overlap of ring steps, measured on processes over UCX.",
               "annulus-bench ring");
  flags.add_to(app);
  flags.add_trace_to(app);
  app.add_option("--tokens", lengths, "prompt lengths")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--decode", decode_steps, "decode steps after each")
      ->check(CLI::NonNegativeNumber);
  app.footer(
      "  annulus-bench ring --model M --cp 4 --tokens 4096,4099\n"
      "  annulus-bench ring --model M --cp 2 --transports tcp,self --trace ring.json");
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  absl::Status status = flags.apply();
  if (status.ok()) status = run(flags, lengths, decode_steps);
  return status.ok() ? 0 : report("ring", status);
}

}  // namespace annulus::bench
