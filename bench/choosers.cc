// SPDX-License-Identifier: Apache-2.0
#include "bench/choosers.h"

#include <algorithm>
#include <cstdio>

#include "bench/statistics.h"

namespace annulus::bench {

using parallel::Load;
using parallel::PolicyInput;
using parallel::Variant;

double Chooser::mean() const {
  return bench::mean(regret_);
}
double Chooser::worst() const {
  return regret_.empty() ? 0 : std::ranges::max(regret_);
}
int Chooser::rows_with_any() const {
  return static_cast<int>(std::ranges::count_if(regret_, [](double r) { return r > 0; }));
}

std::vector<Chooser> choosers() {
  const auto always = [](Variant variant) {
    return [variant](const PolicyInput&, const Load&) { return variant; };
  };
  return {{"ours",
           [](const PolicyInput& in, const Load& load) {
             return parallel::choose(in, {&load, 1});
           }},
          {"always pass-KV", always(Variant::kPassKv)},
          {"always pass-Q", always(Variant::kPassQ)},
          {"always gather-Q", always(Variant::kGatherQ)},
          {"Algorithm 1", parallel::paper_algorithm_1},
          {"Algorithm 5", parallel::paper_algorithm_5}};
}

bool meets_goal(const std::vector<Chooser>& all) {
  const Chooser& ours = all.front();
  return ours.mean() <= 0.01 && ours.worst() <= 0.05 &&
         std::all_of(all.begin() + 1, all.end(),
                     [&](const Chooser& other) { return ours.mean() < other.mean(); });
}

void print(const std::vector<Chooser>& all, int rows) {
  std::printf("%-16s %12s %12s %16s\n", "chooser", "mean regret", "worst", "rows with any");
  for (const Chooser& c : all) {
    std::printf("%-16s %11.2f%% %11.1f%% %11d of %d\n", c.name().c_str(), 100 * c.mean(),
                100 * c.worst(), c.rows_with_any(), rows);
  }
  std::printf("goal: mean <= 1 %%, worst <= 5 %%, mean below all others: %s\n",
              meets_goal(all) ? "met" : "MISSED");
}

}  // namespace annulus::bench
