// SPDX-License-Identifier: Apache-2.0
#include "bench/learning.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "bench/statistics.h"
#include "parallel/profile_fields.h"

namespace annulus::bench {

using parallel::Variant;

void LearningTrace::epoch(parallel::PolicyInput measured,
                          const std::vector<LearningPoint>& points) {
  if (rows_.empty()) {
    std::printf(
        "# ranks measure attention x %g and transfers x %g of what they take; decisions for %zu "
        "points: K pass-KV, Q pass-Q, G gather-Q\n%6s %12s %11s %10s %9s | %9s %9s | %-*s %8s %8s "
        "%8s\n",
        wrong_attention_, wrong_transfers_, points.size(), "epoch", "attention", "link", "hop",
        "collective", "factor of", "", static_cast<int>(std::max<size_t>(points.size(), 9)),
        "decisions", "changed", "regret", "worst");
    std::printf("%6s %12s %11s %10s %9s | %9s %9s |\n", "", "GFLOP/s", "MB/s", "us", "us",
                "attention", "transfers");
  }
  measured.profile = parallel::slower(measured.profile, wrong_attention_, wrong_transfers_);
  parallel::PolicyInput policy = measured;
  policy.profile = learner_.next(measured.profile);

  Row row;
  std::string letters;
  std::vector<double> regret;
  std::vector<Variant> decisions;
  for (const LearningPoint& point : points) {
    const Variant pick = parallel::choose(policy, {&point.load, 1});
    decisions.push_back(pick);
    letters += "KQG"[static_cast<size_t>(pick)];
    regret.push_back(point.us[static_cast<size_t>(pick)] / std::ranges::min(point.us) - 1);
    for (const server::GroupTimes& t : point.times[static_cast<size_t>(pick)]) {
      learner_.observe(policy, pick, {&point.load, 1}, t);
    }
  }
  for (size_t i = 0; i < before_.size(); ++i) row.changes += decisions[i] != before_[i] ? 1 : 0;
  before_ = std::move(decisions);
  row.regret = mean(regret);
  const parallel::MachineProfile& p = policy.profile;
  std::printf("%6zu %12.1f %11.1f %10.1f %9.1f | %9.3f %9.3f | %-9s %8d %7.2f%% %7.1f%%\n",
              rows_.size() + 1, p.attend_flops_per_us / 1e3, p.link_bytes_per_us, p.small_hop_us(),
              p.collective_overhead_us, learner_.attention_factor(), learner_.transfer_factor(),
              letters.c_str(), row.changes, 100 * row.regret, 100 * std::ranges::max(regret));
  std::fflush(stdout);
  rows_.push_back(row);
}

void LearningTrace::summary() const {
  if (rows_.size() < 2) return;
  const size_t half = rows_.size() / 2;
  int early = 0, late = 0;
  for (size_t i = 0; i < rows_.size(); ++i) (i < half ? early : late) += rows_[i].changes;
  std::printf(
      "decisions changed %d times in epochs 1 to %zu, %d times in epochs %zu to %zu; regret %.2f "
      "%% "
      "-> %.2f %%\n",
      early, half, late, half + 1, rows_.size(), 100 * rows_.front().regret,
      100 * rows_.back().regret);
}

}  // namespace annulus::bench
