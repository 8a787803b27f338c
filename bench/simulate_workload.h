// SPDX-License-Identifier: Apache-2.0
// The plans of a workload, made by the real scheduler (server/scheduler): sessions are filled with
// the cached tokens first, untimed, then the prompts come, all at once, and their answers. The
// scheduler needs no clock, so the plans of a whole run can be made before any of it is simulated;
// every sampled id is 1. PURE.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "bench/simulate_engine.h"
#include "parallel/ring_policy.h"
#include "parallel/sharding.h"

namespace annulus::bench {

inline constexpr int64_t kScriptEpoch = 1;

struct ScriptStep {
  parallel::StepPlan plan;
  parallel::ShardState before;
  bool timed = false;   // not of the cached sessions
  bool decode = false;  // decode rows alone
  int64_t new_tokens = 0;
};

// KV rows of a rank that are enough for the workload.
int64_t kv_capacity_rows(int32_t cp, const Workload& work);

absl::StatusOr<std::vector<ScriptStep>> schedule(const parallel::LlamaConfig& config,
                                                 const parallel::PolicyInput& policy,
                                                 const Workload& work);

}  // namespace annulus::bench
