// SPDX-License-Identifier: Apache-2.0
// ThreadRanks: a RankLink whose ranks are threads of this process: for tests and benchmarks. Plans
// and answers are encoded and decoded as between processes. Weights are loaded once by create() and
// survive epochs. lose() ends the epoch as a lost worker would, restart() begins the next one. One
// engine starts it; lose and restart may come from any thread but not from the sink.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/model/checkpoint.h"
#include "parallel/rank.h"
#include "server/rank_link.h"

namespace annulus::server {

struct ThreadRanksOptions {
  parallel::Topology topology;
  parallel::RankOptions rank;
  // Instead of measuring the machine (half a second, and another choice of variants each time).
  std::optional<parallel::MachineProfile> profile;
};

class ThreadRanks : public RankLink {
 public:
  static absl::StatusOr<std::unique_ptr<ThreadRanks>> create(
      std::shared_ptr<const parallel::Checkpoint> checkpoint, const ThreadRanksOptions& options);
  ~ThreadRanks() override;

  void start(std::function<void(LinkEvent)> sink) override;
  void send(const parallel::StepPlan& plan, const parallel::ShardState& before,
            double expected_us) override;

  void lose(const std::string& why);
  void restart();

 private:
  struct Impl;
  explicit ThreadRanks(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::server
