// SPDX-License-Identifier: Apache-2.0
// ProfileLearner: what the steps of an epoch say about the machine profile of the next one. Within
// an epoch the profile is frozen, so that a variant stays a function of the plan. Ranks measure it
// when an epoch begins, in half a second and with nothing else to do; serving may differ. Learned
// are two factors and no decisions: how much longer attention takes than priced, and transfers; of
// a hop that hides nothing is learned. Each is solved for from times observed in whatever variant
// ran. A cost model never fits all variants equally; were the variant that ran last believed alone,
// its misfit would drive the choice away, and the next one's would drive it back. So each variant
// has its own estimate, the factor is the mean of those seen, and what a variant's observations
// move goes for the unseen ones too: which of them ran makes no difference. Damped: an epoch moves
// an estimate half the way to the median of what was observed. Bounded: by a factor of 2 an epoch
// and of 8 in all. Measurements are averaged over epochs. PURE; one owner (the engine).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/ring_policy.h"
#include "parallel/step.h"

namespace annulus::server {

// Attention of one group of a step, all layers, microseconds.
struct GroupTimes {
  double attend_us = 0, exposed_us = 0;
};
// Of the rank that computed longest: least of its waiting is for other ranks' computing.
GroupTimes slowest(std::span<const parallel::StepResult> results, size_t group);

class ProfileLearner {
 public:
  // A group of a step of this epoch; `policy` holds the epoch's profile. Ignored: decode rows,
  // groups too short to time, what is not finite.
  void observe(const parallel::PolicyInput& policy, parallel::Variant variant,
               std::span<const parallel::Load> loads, const GroupTimes& times);

  // Another epoch begins: takes in what was observed and the new measurement; the profile to use.
  parallel::MachineProfile next(const parallel::MachineProfile& measured);

  // Of the profile in use: how much longer than measured, and from how many epochs' steps.
  double attention_factor() const { return attention_.factor(); }
  double transfer_factor() const { return transfers_.factor(); }
  int32_t epochs_learned() const { return epochs_learned_; }

 private:
  class Factor {
   public:
    void observe(parallel::Variant variant, double log_ratio);  // to the factor in use
    bool end_epoch();                                           // false: too little was observed
    double factor() const;

   private:
    struct Estimate {
      bool seen = false;
      double log = 0;
      std::vector<double> observed;  // in this epoch
    };
    std::array<Estimate, parallel::kVariants> estimates_;
    double log_ = 0;
  };

  Factor attention_, transfers_;
  parallel::MachineProfile mean_;  // of the measurements
  int32_t measurements_ = 0, epochs_learned_ = 0;
};

}  // namespace annulus::server
