// SPDX-License-Identifier: Apache-2.0
// Scheduler: decides what the next step is. PURE core: no clock, no locks, no I/O, no text; the
// same calls in the same order give the same plans. Its state is the waiting and running sequences,
// the sessions, and the front end's own fold of all plans sent (ShardState). One owner: the engine,
// which guards it. Steps are pipelined: up to kPlansAhead plans are out; a decode row of the later
// one names its token as sampled{step, row}, and what was computed past an end (stop, cancel) is
// taken back by a Truncate or Release in a later plan, before the slot is used again. Continuous
// batching: a step holds one row of every decoding sequence and as many prompt chunks as
// max_step_us allows. Admission is first come, first served and only where KV rows for prompt and
// answer are sure to fit. Errors are refusals of submit() and rewind(); answers that do not fit a
// plan are CHECKed.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/ring_policy.h"
#include "parallel/sharding.h"
#include "parallel/step.h"
#include "server/request.h"
#include "server/sequence.h"
#include "server/sessions.h"

namespace annulus::server {

struct SchedulerLimits {
  int64_t context = 0;  // positions of a sequence
  int32_t vocab = 0;
  std::vector<int32_t> eos_ids;
  int32_t max_running = 64, max_queue = 256, max_sessions = 64;
  double max_step_us = 500e3;
  int32_t chunk_tokens = 0;  // > 0: this chunk for all
  int32_t page_tokens = 64;  // ranks hold KV rows in pages of this
  bool debug_requests = false;
  std::optional<parallel::Variant> variant;  // for all
};

// What happened to a request, in order. Tokens have no text yet; Finished has no times.
struct SequenceEvent {
  int64_t id = 0;
  Event event;
  bool ends = false;     // Token: the answer's last one
  bool stop_id = false;  // Token: it is the stop id that ended the answer, and has no text
};

struct PlannedStep {
  parallel::StepPlan plan;
  parallel::ShardState before;  // with the plan's ops applied
  double expected_us = 0;
};

struct StepSummary {
  struct Group {
    parallel::Variant variant = parallel::Variant::kPassKv;
    std::vector<parallel::Load> loads;
  };
  bool decode_only = false;
  std::vector<Group> groups;
};

class Scheduler {
 public:
  static constexpr size_t kPlansAhead = 2;
  // Entries of log-probabilities of prompts that one step may bring: 8 MB, within the messages of
  // the control plane and what may wait for a reader.
  static constexpr int64_t kStepLogprobs = int64_t{1} << 20;
  static constexpr int64_t kStepScored = int64_t{1} << 15;  // positions
  // A step with prompt tokens that is predicted to take longer has no plan behind it: the front
  // end's turn is small beside it, and a cancel costs no more than the step that runs.
  static constexpr double kLongStepUs = 10e3;

  explicit Scheduler(SchedulerLimits limits);

  // A new epoch: ranks hold no KV. Sessions keep their tokens.
  void begin_epoch(int64_t epoch, const parallel::PolicyInput& policy, int64_t kv_capacity_rows);
  // Fails every request with this status.
  void lose_epoch(const absl::Status& why);
  bool serving() const { return serving_; }

  // The id for cancel(). INVALID_ARGUMENT, OUT_OF_RANGE (can never fit), RESOURCE_EXHAUSTED (queue
  // full), FAILED_PRECONDITION (session busy), UNAVAILABLE (no epoch).
  absl::StatusOr<int64_t> submit(GenerateRequest request);
  // Finished{cancelled} follows, unless the id is unknown or has ended.
  void cancel(int64_t id);
  // A stop string was found: the answer ends after its first `keep` tokens.
  void finish_early(int64_t id, int64_t keep);
  absl::Status rewind(const std::string& session, int64_t length);
  absl::StatusOr<std::vector<int32_t>> session_tokens(const std::string& session) const;

  // The next plan to send, if there is work and fewer than kPlansAhead are out.
  std::optional<PlannedStep> next();
  // The oldest plan out has run on all ranks; `results` are their answers, in any order.
  StepSummary complete(int64_t step, std::vector<parallel::WantedResult> results);

  std::vector<SequenceEvent> take_events();

  const parallel::ShardState& state() const { return state_; }
  const SchedulerLimits& limits() const { return limits_; }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t sessions() const { return static_cast<int64_t>(sessions_.all().size()); }
  size_t plans_out() const { return out_.size(); }

 private:
  struct Work {  // what one item of a plan is to its sequence
    int64_t id = 0;
    bool prefill = false;
    int64_t end = 0;  // positions [0, end) have KV afterwards
    parallel::Variant variant = parallel::Variant::kPassKv;
    double predicted_us[parallel::kVariants] = {0, 0, 0};
  };
  struct Out {  // a plan that has left
    int64_t step = 0;
    std::vector<Work> work;             // by item
    std::vector<parallel::Item> items;  // without tokens
    StepSummary summary;
    double expected_us = 0;
  };
  struct Draft {  // a plan in the making
    parallel::StepPlan plan;
    std::vector<Work> work;
    std::vector<parallel::Load> loads;
    std::vector<std::optional<parallel::Variant>> forced;
    int32_t rows = 0;  // sampled so far
  };

  Sequence* find_running(int64_t id);
  // 0: by predicted time.
  int32_t chunk_of(const Sequence& sequence) const;
  // Tokens of a chunk whose log-probabilities fit one answer.
  int64_t most_chunk(const Sequence& sequence) const;
  std::optional<parallel::Variant> variant_of(const Sequence& sequence) const;
  absl::Status set_lengths(Sequence& sequence) const;

  // Admission.
  void admit_waiting(Draft& draft);
  bool admit(Sequence& sequence, Draft& draft);
  std::vector<int64_t> rows_wanted(const Sequence& sequence, int64_t reused, int32_t slot) const;
  enum class Droppable { kNone, kIdle };  // sessions whose rows do not count
  bool fits(const std::vector<int64_t>& wanted, const Session* own, Droppable droppable) const;
  int64_t reusable(const Sequence& sequence, const Session& session) const;
  void drop_kv(Session& session, std::vector<parallel::Op>& ops);
  int32_t take_slot();
  std::vector<parallel::DecodeRow> decode_rows() const;

  // Items.
  void add_decodes(Draft& draft);
  void balance_decodes(Draft& draft);
  void add_prefills(Draft& draft);
  void add_item(Draft& draft, Sequence& sequence, parallel::Item item);
  std::vector<parallel::Wanted> prompt_wanted(const Sequence& sequence, int64_t first,
                                              int64_t end) const;

  // Endings.
  void score_prompt(Sequence& sequence, const parallel::WantedResult& result);
  void take_token(Sequence& sequence, const parallel::WantedResult* result);
  void retire(int64_t id, FinishReason reason);
  void limit_sessions();
  void emit(int64_t id, Event event) { events_.push_back({id, std::move(event), false, false}); }

  SchedulerLimits limits_;
  bool serving_ = false;
  int64_t epoch_ = 0, step_ = 0;
  parallel::PolicyInput policy_;
  int64_t kv_capacity_rows_ = 0;
  parallel::ShardState state_;

  int64_t last_id_ = 0;
  std::deque<Sequence> waiting_;
  std::deque<Sequence> running_;  // by admission; references stay valid while others are added
  Sessions sessions_;
  std::deque<Out> out_;
  std::vector<parallel::Op> pending_ops_;  // go first in the next plan
  std::set<int32_t> free_slots_;
  std::vector<int32_t> cooling_slots_;  // released by the plan in the making: free in later ones
  int32_t slots_made_ = 0;
  std::vector<SequenceEvent> events_;
};

}  // namespace annulus::server
