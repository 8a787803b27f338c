// SPDX-License-Identifier: Apache-2.0
// Ways of choosing a variant, and what each lost to the fastest over the rows of a sweep: ours,
// always the same one, and the paper's Algorithms 1 and 5. For regret, measured or simulated. PURE
// but for print().
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/ring_policy.h"

namespace annulus::bench {

class Chooser {
 public:
  using Choice =
      std::function<parallel::Variant(const parallel::PolicyInput&, const parallel::Load&)>;
  Chooser(std::string name, Choice choice) : choose(std::move(choice)), name_(std::move(name)) {}

  Choice choose;
  const std::string& name() const { return name_; }
  // A row's regret: time of the choice over that of the fastest, less 1.
  void add(double regret) { regret_.push_back(regret); }
  double mean() const;
  double worst() const;
  int rows_with_any() const;

 private:
  std::string name_;
  std::vector<double> regret_;
};

// ours first; Algorithms 1 and 5 last.
std::vector<Chooser> choosers();

// What the goal for ours is: mean at most 1 %, worst at most 5 %, mean below all the others.
bool meets_goal(const std::vector<Chooser>& all);

// A table of all, and whether the goal is met.
void print(const std::vector<Chooser>& all, int rows);

}  // namespace annulus::bench
