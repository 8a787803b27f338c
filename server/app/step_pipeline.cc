// SPDX-License-Identifier: Apache-2.0
#include "server/app/step_pipeline.h"

#include <utility>

namespace annulus::server {

using Clock = std::chrono::steady_clock;

absl::Status StepPipeline::begin(parallel::Rank& rank, const parallel::StepPlan& plan,
                                 Clock::duration limit) {
  const Clock::time_point start = Clock::now();
  // A rank that still has a step waits for no plan.
  const bool idle = empty() && ended_;
  const float idle_us =
      idle ? std::chrono::duration<float, std::micro>(start - *ended_).count() : 0;
  idle_us_.push_back(idle_us);  // now: a step that ends meanwhile has this one behind it
  absl::Status begun = rank.begin(
      plan, start + limit, [this](parallel::StepResult result) { finish(std::move(result)); });
  if (!begun.ok()) idle_us_.pop_back();
  return begun;
}

void StepPipeline::run(parallel::Rank& rank) {
  while (!empty()) {
    const bool room = rank.begun() < rank.most_begun();
    const auto wanted = [&] { return room && inbox_.ready(); };
    if (wanted() || !rank.wait(wanted)) return;
    finish(rank.end());
  }
}

void StepPipeline::finish(parallel::StepResult result) {
  ended_ = Clock::now();
  result.idle_us = idle_us_.front();
  idle_us_.pop_front();
  result.plans_waiting = inbox_.plans() + static_cast<int32_t>(idle_us_.size());
  send_(std::move(result));
}

}  // namespace annulus::server
