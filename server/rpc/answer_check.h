// SPDX-License-Identifier: Apache-2.0
// What each rank must answer to a plan, and whether it did: a StepResult comes over a network, and
// what the scheduler is given must fit its plan. Pure. Used by the coordinator, which gives up the
// worker whose answer does not fit. Errors: InvalidArgument, worded to follow "its answer".
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "parallel/sharding.h"
#include "parallel/step.h"
#include "parallel/topology.h"

namespace annulus::server {

struct ExpectedAnswer {
  int32_t item = 0;
  parallel::Wanted wanted;
};

// By world rank, in the order of items and positions; `before` has the plan's ops applied. The
// first of a column's tensor-parallel ranks answers for all.
std::vector<std::vector<ExpectedAnswer>> expected_answers(const parallel::StepPlan& plan,
                                                          const parallel::ShardState& before,
                                                          const parallel::Topology& topology);

absl::Status check_answer(const std::vector<ExpectedAnswer>& expected,
                          const parallel::StepResult& result, int32_t vocab);

}  // namespace annulus::server
