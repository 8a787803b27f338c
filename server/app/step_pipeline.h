// SPDX-License-Identifier: Apache-2.0
// StepPipeline: the steps of a worker that are under way. A plan that is here while its predecessor
// runs is begun at once, where the rank can (Rank::most_begun), so that a GPU finds its next step
// when it is done with one; a result leaves as its step ends, whatever else is to come. The compute
// thread's. Errors: begin()'s Status; DeviceError of the rank.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <optional>

#include "absl/status/status.h"
#include "parallel/rank.h"
#include "server/app/worker_inbox.h"

namespace annulus::server {

class StepPipeline {
 public:
  // `send` gets results in the order of their plans, idle_us and plans_waiting filled in.
  StepPipeline(Inbox& inbox, std::function<void(parallel::StepResult)> send)
      : inbox_(inbox), send_(std::move(send)) {}

  absl::Status begin(parallel::Rank& rank, const parallel::StepPlan& plan,
                     std::chrono::steady_clock::duration limit);

  // Ends steps until none is under way, or one more may be begun and the inbox has something.
  void run(parallel::Rank& rank);

  bool empty() const { return idle_us_.empty(); }
  // The epoch is over: its steps are nobody's.
  void clear() {
    idle_us_.clear();
    ended_.reset();
  }

 private:
  void finish(parallel::StepResult result);

  Inbox& inbox_;
  std::function<void(parallel::StepResult)> send_;
  std::deque<float> idle_us_;                                   // before each step under way
  std::optional<std::chrono::steady_clock::time_point> ended_;  // the last step
};

}  // namespace annulus::server
