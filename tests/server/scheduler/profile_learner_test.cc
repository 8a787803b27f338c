// SPDX-License-Identifier: Apache-2.0
// The profile converges to the machine whatever variant is observed, stands still, and is bounded.
#include "server/profile_learner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "parallel/profile_fields.h"

namespace annulus::server {
namespace {

using parallel::Load;
using parallel::MachineProfile;
using parallel::PolicyInput;
using parallel::slower;
using parallel::Variant;

// GPUs over RDMA, where a part of every hop hides behind nothing.
PolicyInput machine() {
  PolicyInput in;
  in.shape = {16, 1, 128, 126, kernels::DType::kBF16};
  in.cp = 4;
  in.profile = {.attend_flops_per_us = 540e6,
                .kv_read_bytes_per_us = 2.4e6,
                .attend_overhead_us = 5,
                .link_bytes_per_us = 26e3,
                .link_latency_us = 10,
                .merge_bytes_per_us = 2e6,
                .pack_bytes_per_us = 1e6,
                .overlap = 1,
                .hop_overhead_us = 40,
                .collective_overhead_us = 80,
                .collective_bytes_per_us = 40e3};
  in.workspace_limit_bytes = int64_t{8} << 30;
  return in;
}

std::vector<Load> points() {
  std::vector<Load> loads;
  for (const int64_t n : {640, 1280, 1920, 2560, 3200, 4480, 6400, 12800, 25600, 128000}) {
    loads.push_back({n, 128000 - n});
  }
  return loads;
}

GroupTimes times_of(const PolicyInput& truth, Variant variant, const Load& load) {
  const parallel::Prediction p = parallel::predict(truth, {&load, 1})[static_cast<size_t>(variant)];
  return {p.attend_us, p.exposed_us};
}

// An epoch in which each point ran `samples` times as `profile` chooses, or as forced.
void run_epoch(ProfileLearner& learner, const PolicyInput& truth, const MachineProfile& profile,
               int samples, const Variant* forced = nullptr) {
  PolicyInput policy = truth;
  policy.profile = profile;
  for (const Load& load : points()) {
    const Variant variant = forced != nullptr ? *forced : parallel::choose(policy, {&load, 1});
    for (int i = 0; i < samples; ++i) {
      learner.observe(policy, variant, {&load, 1}, times_of(truth, variant, load));
    }
  }
}

TEST(ProfileLearner, BeginsWithTheMeasurement) {
  ProfileLearner learner;
  const MachineProfile measured = machine().profile, used = learner.next(measured);
  for (const parallel::ProfileField& field : parallel::kProfileFields) {
    EXPECT_NEAR(used.*field.value, measured.*field.value, 1e-9 * (measured.*field.value))
        << field.name;
  }
  EXPECT_EQ(learner.epochs_learned(), 0);
  learner.next(measured);
  EXPECT_EQ(learner.epochs_learned(), 0) << "nothing was observed";
}

TEST(ProfileLearner, ConvergesToTheMachineAndItsDecisions) {
  const PolicyInput truth = machine();
  for (const auto& [attention, transfers] :
       {std::pair(1.0, 0.2), std::pair(1.0, 5.0), std::pair(0.25, 4.0), std::pair(3.0, 0.3)}) {
    const MachineProfile wrong = slower(truth.profile, attention, transfers);
    ProfileLearner learner;
    MachineProfile profile = learner.next(wrong);
    double error = std::abs(std::log(transfers));
    for (int epoch = 0; epoch < 12; ++epoch) {
      run_epoch(learner, truth, profile, 8);
      profile = learner.next(wrong);
      const double now = std::abs(std::log(transfers * learner.transfer_factor()));
      EXPECT_LE(now, error + 0.02) << "epoch " << epoch;  // no way back
      error = now;
    }
    EXPECT_NEAR(learner.attention_factor() * attention, 1, 0.02);
    EXPECT_NEAR(learner.transfer_factor() * transfers, 1, 0.02);
    PolicyInput learned = truth;
    learned.profile = profile;
    for (const Load& load : points()) {
      const auto cost = parallel::predict(truth, {&load, 1});
      const Variant pick = parallel::choose(learned, {&load, 1});
      const Variant best = parallel::choose(truth, {&load, 1});
      EXPECT_LE(cost[static_cast<size_t>(pick)].us, 1.01 * cost[static_cast<size_t>(best)].us)
          << load.n_new;
    }
  }
}

TEST(ProfileLearner, EveryVariantTeachesTheSame) {
  const PolicyInput truth = machine();
  const MachineProfile wrong = slower(truth.profile, 1.5, 0.5);
  for (const Variant variant : {Variant::kPassKv, Variant::kPassQ, Variant::kGatherQ}) {
    ProfileLearner learner;
    run_epoch(learner, truth, learner.next(wrong), 8, &variant);
    learner.next(wrong);
    EXPECT_NEAR(learner.attention_factor(), std::sqrt(1 / 1.5), 0.01) << name(variant);
    EXPECT_NEAR(learner.transfer_factor(), std::sqrt(1 / 0.5), 0.02) << name(variant);
  }
}

// Transfers of pass-KV take twice as long as the model says, those of the others half as long:
// believing whoever ran last would swing the factor, and the choice, for ever.
TEST(ProfileLearner, AModelThatFitsOneVariantWorseMakesNoOscillation) {
  const PolicyInput truth = machine();
  const auto observed = [&](Variant variant, const Load& load) {
    PolicyInput own = truth;
    own.profile = slower(truth.profile, 1, variant == Variant::kPassKv ? 2 : 0.5);
    return times_of(own, variant, load);
  };
  ProfileLearner learner;
  std::vector<Variant> before;
  std::vector<int> changes;
  for (int epoch = 0; epoch < 30; ++epoch) {
    PolicyInput policy = truth;
    policy.profile = learner.next(truth.profile);
    std::vector<Variant> picks;
    for (const Load& load : points()) {
      picks.push_back(parallel::choose(policy, {&load, 1}));
      for (int i = 0; i < 8; ++i) {
        learner.observe(policy, picks.back(), {&load, 1}, observed(picks.back(), load));
      }
    }
    int changed = 0;
    for (size_t i = 0; i < before.size(); ++i) changed += picks[i] != before[i] ? 1 : 0;
    changes.push_back(changed);
    before = picks;
  }
  for (size_t epoch = 10; epoch < changes.size(); ++epoch) EXPECT_EQ(changes[epoch], 0) << epoch;
}

TEST(ProfileLearner, NoiseStaysSmall) {
  const PolicyInput truth = machine();
  std::mt19937 random(3);
  std::normal_distribution<double> normal(0, 0.3);
  ProfileLearner learner;
  for (int epoch = 0; epoch < 60; ++epoch) {
    MachineProfile measured = truth.profile;
    measured.link_bytes_per_us *= std::exp(normal(random));
    PolicyInput policy = truth;
    policy.profile = learner.next(measured);
    if (epoch >= 10) {
      EXPECT_NEAR(std::log(policy.profile.link_bytes_per_us / 26e3), 0, 0.3) << epoch;
      EXPECT_NEAR(std::log(policy.profile.attend_flops_per_us / 540e6), 0, 0.15) << epoch;
    }
    for (const Load& load : points()) {
      const Variant variant = parallel::choose(policy, {&load, 1});
      for (int i = 0; i < 8; ++i) {
        GroupTimes times = times_of(truth, variant, load);
        times.attend_us *= std::exp(normal(random));
        times.exposed_us *= std::exp(normal(random));
        learner.observe(policy, variant, {&load, 1}, times);
      }
    }
  }
}

TEST(ProfileLearner, OfHiddenHopsNothingIsLearned) {
  PolicyInput truth = machine();
  truth.profile.hop_overhead_us = 0;
  ProfileLearner learner;
  PolicyInput policy = truth;
  policy.profile = learner.next(truth.profile);
  const Load load = {64000, 64000};
  for (int i = 0; i < 20; ++i) {
    learner.observe(policy, Variant::kPassKv, {&load, 1}, times_of(truth, Variant::kPassKv, load));
  }
  learner.next(truth.profile);
  EXPECT_EQ(learner.transfer_factor(), 1);
}

TEST(ProfileLearner, AbsurdTimesAreBounded) {
  const PolicyInput truth = machine();
  const Load load = {6400, 121600}, decode = {1, 128000};
  const double inf = std::numeric_limits<double>::infinity();
  ProfileLearner learner;
  PolicyInput policy = truth;
  policy.profile = learner.next(truth.profile);
  for (int i = 0; i < 20; ++i) {
    for (const GroupTimes& times : {GroupTimes{std::nan(""), 1}, GroupTimes{1, inf},
                                    GroupTimes{0, 1}, GroupTimes{-1, 1}, GroupTimes{1, -1}}) {
      learner.observe(policy, Variant::kPassKv, {&load, 1}, times);
    }
    learner.observe(policy, Variant::kPassKv, {&decode, 1}, {1e9, 1e9});
  }
  learner.next(truth.profile);
  EXPECT_EQ(learner.epochs_learned(), 0);
  // Too few.
  for (int i = 0; i < 7; ++i) {
    learner.observe(policy, Variant::kPassKv, {&load, 1}, {1e12, 1e12});
  }
  learner.next(truth.profile);
  EXPECT_EQ(learner.epochs_learned(), 0);
  for (const double us : {1e30, 1e-30}) {
    for (int epoch = 0; epoch < 40; ++epoch) {
      const double attention = learner.attention_factor(), transfers = learner.transfer_factor();
      for (int i = 0; i < 20; ++i) {
        learner.observe(policy, Variant::kPassKv, {&load, 1}, {us, us});
      }
      policy.profile = learner.next(truth.profile);
      for (const double factor :
           {learner.attention_factor() / attention, learner.transfer_factor() / transfers}) {
        EXPECT_LE(factor, 2.0001);
        EXPECT_GE(factor, 1 / 2.0001);
      }
      EXPECT_LE(learner.attention_factor(), 8.0001);
      EXPECT_GE(learner.attention_factor(), 1 / 8.0001);
    }
  }
}

TEST(ProfileLearner, TheSlowestComputingRankIsObserved) {
  std::vector<parallel::StepResult> results(2);
  results[0].groups = {{.attend_us = 10, .exposed_us = 90}};
  results[1].groups = {{.attend_us = 70, .exposed_us = 30}};
  const GroupTimes times = slowest(results, 0);
  EXPECT_EQ(times.attend_us, 70);
  EXPECT_EQ(times.exposed_us, 30);
  EXPECT_EQ(slowest(results, 1).attend_us, 0);
}

}  // namespace
}  // namespace annulus::server
