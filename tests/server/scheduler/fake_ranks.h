// SPDX-License-Identifier: Apache-2.0
// FakeRanks: what a rank group would do with the scheduler's plans, without tensors: it folds the
// plans over its own ShardState, keeps the token ids fed to every slot, and "samples" a token that
// is a hash of all ids before it and the slot's seed, so that one wrong, missing or doubled id
// changes every later answer. Every plan is held to validate(), to the KV capacity in whole pages,
// and to what the scheduler believes. answer_alone() says what a request must get whatever else
// runs.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "parallel/sharding.h"
#include "server/scheduler.h"

namespace annulus::testing {

parallel::PolicyInput test_policy(int32_t cp);

struct AloneRequest {
  std::vector<int32_t> prompt, forced, stop_ids;
  uint64_t seed = 0;
  int64_t max_tokens = 0;
};
std::vector<int32_t> answer_alone(const AloneRequest& request, int32_t vocab);

class FakeRanks {
 public:
  FakeRanks(int32_t cp, int32_t vocab, int64_t capacity_rows, int32_t page_tokens);

  void run(const server::PlannedStep& planned);  // CHECKs by GoogleTest expectations
  // Answers of the oldest plan that was not taken yet.
  std::vector<parallel::WantedResult> take_answers(int64_t step);

  const parallel::ShardState& state() const { return state_; }
  int64_t positions_computed() const { return computed_; }
  int64_t largest_rows() const { return largest_rows_; }  // of any rank, ever

 private:
  struct Slot {
    std::vector<int32_t> tokens;
    uint64_t seed = 0;
  };
  int32_t vocab_;
  int64_t capacity_rows_;
  int32_t page_tokens_;
  parallel::ShardState state_;
  std::map<int32_t, Slot> slots_;
  std::map<int64_t, std::vector<int32_t>> sampled_;  // by step
  std::map<int64_t, std::vector<parallel::WantedResult>> answers_;
  int64_t computed_ = 0, largest_rows_ = 0;
};

}  // namespace annulus::testing
