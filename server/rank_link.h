// SPDX-License-Identifier: Apache-2.0
// How the engine reaches the ranks of an epoch: one object, either worker processes behind the gRPC
// control plane (server/rpc/control_service) or threads of this process (server/thread_ranks, for
// tests and benchmarks).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "parallel/ring_policy.h"
#include "parallel/sharding.h"
#include "parallel/step.h"
#include "parallel/topology.h"

namespace annulus::server {

struct RankInfo {
  int32_t world_rank = 0;
  std::string host;
  int64_t pid = 0;
  std::string cpu_isa;
  int32_t threads = 0;
  int64_t weight_bytes = 0;
  int32_t weights_from = -1;  // world rank that sent them in this epoch; -1: read, or held
  double load_s = 0;          // 0: held
};

// All ranks of an epoch have met and measured the machine.
struct EpochReady {
  int64_t epoch = 0;
  parallel::Topology topology;
  parallel::PolicyInput policy;  // with the profile that the ranks measured
  bool learn = true;             // steps' times are of running, and may correct the profile
  int64_t kv_capacity_rows = 0;  // the smallest rank's
  std::vector<RankInfo> ranks;
};
struct RankAnswer {
  parallel::StepResult result;
};
// The epoch is over: nothing of it will answer any more. A new EpochReady may follow.
struct EpochLost {
  int64_t epoch = 0;
  std::string why;  // names the rank
};
using LinkEvent = std::variant<EpochReady, RankAnswer, EpochLost>;

class RankLink {
 public:
  virtual ~RankLink() = default;
  // Events come from threads of the link, in order; `sink` must not block. Called once, before
  // anything else.
  virtual void start(std::function<void(LinkEvent)> sink) = 0;
  // Sends the plan to every rank, cut to it. `before` has the plan's ops applied. Never blocks on a
  // rank; a rank that is gone shows as EpochLost. expected_us: predicted time of the step; the step
  // deadline is 10x that + 10 s.
  virtual void send(const parallel::StepPlan& plan, const parallel::ShardState& before,
                    double expected_us) = 0;
};

}  // namespace annulus::server
