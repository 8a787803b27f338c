// SPDX-License-Identifier: Apache-2.0
// A trace of the profile that server::ProfileLearner makes from epoch to epoch, where what ranks
// measure is wrong: the rates, the variant chosen for a fixed set of points, and what the choices
// lose. The learner sees the times of the chosen variants only, as in serving. For
// `annulus-bench learn` (ranks) and `simulate learn` (virtual time). PURE but for printing.
#pragma once

#include <array>
#include <vector>

#include "parallel/ring_policy.h"
#include "server/profile_learner.h"

namespace annulus::bench {

struct LearningPoint {
  parallel::Load load;
  std::array<double, parallel::kVariants> us{};  // what each variant takes, for the regret
  std::array<std::vector<server::GroupTimes>, parallel::kVariants> times;  // as this epoch saw it
};

class LearningTrace {
 public:
  // Ranks "measure" that attention and transfers take so many times as long as they measured.
  LearningTrace(double wrong_attention, double wrong_transfers)
      : wrong_attention_(wrong_attention), wrong_transfers_(wrong_transfers) {}

  // One more epoch: a row. The same points in every epoch.
  void epoch(parallel::PolicyInput measured, const std::vector<LearningPoint>& points);
  // How often decisions changed, early and late.
  void summary() const;

  struct Row {
    double regret = 0;  // mean over the points
    int changes = 0;    // decisions that differ from the epoch before
  };
  const std::vector<Row>& rows() const { return rows_; }

 private:
  double wrong_attention_, wrong_transfers_;
  server::ProfileLearner learner_;
  std::vector<parallel::Variant> before_;
  std::vector<Row> rows_;
};

}  // namespace annulus::bench
