// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_learn.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "bench/learning.h"
#include "parallel/profile_fields.h"

namespace annulus::bench {

using server::GroupTimes;

void SimulatedLearning::add_to(CLI::App& app, SimFlags& flags) {
  command_ = app.add_subcommand(
      "learn", "the profile from epoch to epoch, where ranks measure wrong and times are noisy");
  flags.add_to(*command_);
  command_->add_option("--tp", tp_, "tensor-parallel ranks")->capture_default_str();
  command_->add_option("--cp", cp_, "context-parallel ranks")
      ->check(CLI::Range(2, kMostRanks))
      ->capture_default_str();
  command_->add_option("--epochs", epochs_, "epochs")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command_->add_option("--samples", samples_, "times that are seen of a point in an epoch")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command_
      ->add_option("--wrong-attention", wrong_attention_,
                   "attention is measured to take so many times as long as it does")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  command_->add_option("--wrong-transfers", wrong_transfers_, "the same of transfers")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  command_->add_option("--noise", noise_, "of every time, deviation of its logarithm")
      ->check(CLI::Range(0.0, 3.0))
      ->capture_default_str();
  command_->add_option("--seed", seed_, "of the noise")->capture_default_str();
  command_->add_option("--totals", totals_, "cached + new tokens")
      ->delimiter(',')
      ->check(CLI::Range(16, 1 << 24))
      ->capture_default_str();
  command_->add_option("--miss", miss_percent_, "miss rates in percent")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
}

absl::Status SimulatedLearning::run(const SimFlags& flags) const {
  const parallel::Topology t{tp_, cp_};
  std::vector<LearningPoint> exact;
  Workload work;
  for (const int64_t total : totals_) {
    for (const double miss : miss_percent_) {
      work.prompt = std::max<int64_t>(2, std::llround(static_cast<double>(total) * miss / 100));
      work.cached = total - work.prompt;
      LearningPoint point{{work.prompt, work.cached}, {}, {}};
      for (size_t v = 0; v < point.times.size(); ++v) {
        work.variant = static_cast<parallel::Variant>(v);
        const absl::StatusOr<Simulated> run = simulate(flags.model, flags.machine, t, work);
        if (!run.ok()) return run.status();
        GroupTimes sum;
        for (const SimulatedStep& step : run->prefill) {
          const Shares& mean = step.times.mean;
          sum.attend_us +=
              of(mean, Share::kAttend) + of(mean, Share::kPack) + of(mean, Share::kMerge);
        }
        sum.exposed_us = run->attention_us() - sum.attend_us;
        point.times[v] = {sum};
        point.us[v] = run->attention_us();
      }
      exact.push_back(std::move(point));
    }
  }
  std::printf("# %s on %s, TP %d x CP %d; every time is noisy (%.0f %%), %d samples of a point\n",
              flags.model.config.name.c_str(), flags.machine.name.c_str(), tp_, cp_, 100 * noise_,
              samples_);
  std::mt19937_64 random(seed_);
  std::normal_distribution<double> normal(0, noise_);
  const auto noisy = [&](double us) { return us * std::exp(normal(random)); };
  const parallel::PolicyInput truth = policy_of(flags.model, flags.machine, t, work);
  LearningTrace trace(wrong_attention_, wrong_transfers_);
  for (int epoch = 0; epoch < epochs_; ++epoch) {
    parallel::PolicyInput measured = truth;
    for (const parallel::ProfileField& field : parallel::kProfileFields) {
      double& value = measured.profile.*field.value;
      if (field.prices != parallel::ProfileField::Prices::kShare) value = noisy(value);
    }
    std::vector<LearningPoint> seen = exact;
    for (LearningPoint& point : seen) {
      for (std::vector<GroupTimes>& times : point.times) {
        const GroupTimes one = times[0];
        times.clear();
        for (int i = 0; i < samples_; ++i) {
          times.push_back({noisy(one.attend_us), noisy(one.exposed_us)});
        }
      }
    }
    trace.epoch(measured, seen);
  }
  trace.summary();
  return absl::OkStatus();
}

}  // namespace annulus::bench
