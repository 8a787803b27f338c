// SPDX-License-Identifier: Apache-2.0
#include "bench/profile.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "bench/rank_flags.h"
#include "kernels/core/phase.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks

// One workload: phases summed over its steps, by rank.
struct Column {
  const char* what;
  int64_t rows = 0, depth = 0;
  std::vector<std::array<double, kernels::kPhases>> ranks;

  explicit Column(const char* name) : what(name) {}
  void add(const std::vector<StepResult>& results) {
    ranks.resize(results.size());
    for (const StepResult& r : results) {
      for (size_t p = 0; p < r.phase_us.size(); ++p)
        ranks[static_cast<size_t>(r.world_rank)][p] += static_cast<double>(r.phase_us[p]);
    }
  }
};

void print(const Column& column) {
  for (size_t r = 0; r < column.ranks.size(); ++r) {
    const auto& us = column.ranks[r];
    double total = 0;
    for (const double x : us) total += x;
    std::printf("\n%s %lld tokens at depth %lld, rank %zu: %.1f ms, %.1f tokens/s\n", column.what,
                static_cast<long long>(column.rows), static_cast<long long>(column.depth), r,
                total / 1e3, static_cast<double>(column.rows) * 1e6 / total);
    std::printf("  %-16s %10s %12s %7s\n", "phase", "ms", "us a token", "share");
    for (size_t p = 0; p < us.size(); ++p) {
      if (us[p] <= 0) continue;
      std::printf("  %-16s %10.2f %12.2f %6.1f%%\n", name(static_cast<kernels::Phase>(p)),
                  us[p] / 1e3, us[p] / static_cast<double>(column.rows), 100 * us[p] / total);
    }
  }
  std::fflush(stdout);
}

// The fastest variant as the server would choose it; the last position is sampled.
StepPlan plan_of(const RankGroup& group, int32_t slot, int64_t first, int32_t count,
                 Placement placement) {
  const Load load{count, first};
  StepPlan plan = append_plan(slot, first, count, choose(group.policy(), {&load, 1}), placement,
                              group.config().vocab);
  plan.items[0].wanted = {{.position = first + count - 1, .sample = true}};
  return plan;
}

}  // namespace

absl::Status print_profile(RankGroupOptions options, const ProfileWork& work) {
  options.rank.profile = true;
  absl::StatusOr<std::unique_ptr<RankGroup>> started = RankGroup::start(options);
  if (!started.ok()) return started.status();
  RankGroup& group = **started;
  std::printf("# profile: tp %d x cp %d, %d thread(s) a rank, chunks of %d\n", options.topology.tp,
              options.topology.cp, options.rank.threads, work.chunk);
  int32_t slot = 0;
  for (const int prompt : work.prompts) {
    Column prefill("prompt"), decode("decode");
    prefill.rows = prompt;
    for (int first = 0; first < prompt; first += work.chunk) {
      const int count = std::min(work.chunk, prompt - first);
      StepPlan plan = plan_of(group, slot, first, count, Placement::kPrompt);
      if (first + count < prompt) plan.items[0].wanted.clear();
      if (first == 0) plan.ops = {admit_op(slot)};
      const auto results = group.run(plan);
      if (!results.ok()) return results.status();
      prefill.add(*results);
    }
    decode.rows = work.decode_steps;
    decode.depth = prompt;
    for (int i = 0; i < work.decode_steps; ++i) {
      const auto results = group.run(plan_of(group, slot, prompt + i, 1, Placement::kDecode));
      if (!results.ok()) return results.status();
      decode.add(*results);
    }
    print(prefill);
    if (work.decode_steps > 0) print(decode);
    StepPlan end;
    end.ops = {slot_op(Op::Kind::kRelease, slot++)};
    if (const auto results = group.run(end); !results.ok()) return results.status();
  }
  return absl::OkStatus();
}

}  // namespace annulus::bench
