// SPDX-License-Identifier: Apache-2.0
#include "server/profile_learner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel/profile_fields.h"

namespace annulus::server {
namespace {

using parallel::kProfileFields;
using parallel::Load;
using parallel::MachineProfile;
using parallel::PolicyInput;
using parallel::ProfileField;

constexpr double kLeastUs = 500;      // a group's attention that is worth timing
constexpr double kHidden = 0.02;      // of attention: transfers that say nothing
constexpr size_t kFewest = 8;         // observations of a variant that make its epoch count
constexpr size_t kMost = 256;         // that are kept: the latest
constexpr double kSolveWithin = 64;   // factors that are looked for
constexpr double kEpochRatio = 4;     // of a median that is believed
constexpr double kMostFactor = 8;     // of all epochs
constexpr double kGain = 0.5;         // of an epoch's median
constexpr double kLeastGain = 0.125;  // of a measurement, however many there were

double bounded(double log) {
  return std::clamp(log, -std::log(kMostFactor), std::log(kMostFactor));
}

double exposed_us(PolicyInput policy, parallel::Variant variant, std::span<const Load> loads,
                  double attention, double transfers) {
  policy.profile = parallel::slower(policy.profile, attention, transfers);
  return parallel::predict(policy, loads)[static_cast<size_t>(variant)].exposed_us;
}

}  // namespace

GroupTimes slowest(std::span<const parallel::StepResult> results, size_t group) {
  GroupTimes times;
  for (const parallel::StepResult& result : results) {
    if (group >= result.groups.size()) continue;
    const parallel::GroupReport& report = result.groups[group];
    if (report.attend_us >= times.attend_us) times = {report.attend_us, report.exposed_us};
  }
  return times;
}

void ProfileLearner::observe(const PolicyInput& policy, parallel::Variant variant,
                             std::span<const Load> loads, const GroupTimes& times) {
  const auto prompt = [](const Load& load) { return load.n_new > 1; };
  if (std::none_of(loads.begin(), loads.end(), prompt)) return;
  const parallel::Prediction priced =
      parallel::predict(policy, loads)[static_cast<size_t>(variant)];
  const bool sane = std::isfinite(times.attend_us) && std::isfinite(times.exposed_us) &&
                    times.attend_us > 0 && times.exposed_us >= 0;
  if (!sane || priced.us < kLeastUs) return;
  const double attention =
      std::clamp(times.attend_us / priced.attend_us, 1 / kSolveWithin, kSolveWithin);
  attention_.observe(variant, std::log(attention));

  if (policy.cp == 1) return;
  const double hidden = kHidden * times.attend_us;
  if (times.exposed_us < hidden && exposed_us(policy, variant, loads, attention, 1) < hidden)
    return;
  // Exposed time grows with the factor: the one that explains what was observed.
  double low = -std::log(kSolveWithin), high = -low;
  for (int i = 0; i < 24; ++i) {
    const double middle = (low + high) / 2;
    const double us = exposed_us(policy, variant, loads, attention, std::exp(middle));
    (us < times.exposed_us ? low : high) = middle;
  }
  transfers_.observe(variant, high);
}

void ProfileLearner::Factor::observe(parallel::Variant variant, double log_ratio) {
  std::vector<double>& observed = estimates_[static_cast<size_t>(variant)].observed;
  if (observed.size() == kMost) observed.erase(observed.begin());
  observed.push_back(log_ + log_ratio);
}

bool ProfileLearner::Factor::end_epoch() {
  double moved = 0, counted = 0;
  std::array<bool, parallel::kVariants> ran{};
  for (size_t v = 0; v < estimates_.size(); ++v) {
    Estimate& estimate = estimates_[v];
    std::vector<double> observed = std::exchange(estimate.observed, {});
    if (observed.size() < kFewest) continue;
    const auto middle = observed.begin() + static_cast<std::ptrdiff_t>(observed.size() / 2);
    std::nth_element(observed.begin(), middle, observed.end());
    if (!std::exchange(estimate.seen, true)) estimate.log = log_;
    const double most = std::log(kEpochRatio);
    const double move = kGain * std::clamp(*middle - estimate.log, -most, most);
    estimate.log = bounded(estimate.log + move);
    moved += move;
    ++counted;
    ran[v] = true;
  }
  if (counted == 0) return false;
  double sum = 0, seen = 0;
  for (size_t v = 0; v < estimates_.size(); ++v) {
    Estimate& estimate = estimates_[v];
    if (!estimate.seen) continue;
    if (!ran[v]) estimate.log = bounded(estimate.log + moved / counted);
    sum += estimate.log;
    ++seen;
  }
  log_ = sum / seen;
  return true;
}

double ProfileLearner::Factor::factor() const {
  return std::exp(log_);
}

MachineProfile ProfileLearner::next(const MachineProfile& measured) {
  const bool attention = attention_.end_epoch(), transfers = transfers_.end_epoch();
  if (attention || transfers) ++epochs_learned_;
  const double gain = std::max(1.0 / ++measurements_, kLeastGain);
  for (const ProfileField& field : kProfileFields) {
    double& mean = mean_.*field.value;
    const double value = measured.*field.value;
    // Rates by their ratio, what may be zero by its difference.
    mean = field.rate ? mean * std::pow(value / mean, gain) : mean + gain * (value - mean);
  }
  return parallel::slower(mean_, attention_factor(), transfer_factor());
}

}  // namespace annulus::server
