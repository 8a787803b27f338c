// SPDX-License-Identifier: Apache-2.0
// Driver: a scheduler with fake ranks, run to the end of its work; what each request was told.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "tests/server/scheduler/fake_ranks.h"

namespace annulus::testing {

inline constexpr int32_t kDriverVocab = 1000;

struct Told {
  bool accepted = false;
  int64_t prompt_tokens = 0, cached_tokens = 0;
  std::vector<int32_t> answer;
  std::vector<server::Token> tokens;
  std::vector<server::PromptLogprob> scored;
  std::vector<server::PrefillProgress> progress;
  std::optional<server::Finished> finished;
  std::optional<absl::Status> failed;
};

inline server::SchedulerLimits driver_limits() {
  server::SchedulerLimits limits;
  limits.context = 1000;
  limits.vocab = kDriverVocab;
  limits.page_tokens = 1;
  limits.debug_requests = true;
  return limits;
}

class Driver {
 public:
  explicit Driver(const server::SchedulerLimits& limits = driver_limits(), int32_t cp = 2,
                  int64_t capacity_rows = 4000)
      : scheduler(limits), ranks(cp, limits.vocab, capacity_rows, limits.page_tokens) {
    scheduler.begin_epoch(1, test_policy(cp), capacity_rows);
  }

  // Sends one plan if there is one.
  const server::PlannedStep* send() {
    std::optional<server::PlannedStep> planned = scheduler.next();
    collect();
    if (!planned) return nullptr;
    ranks.run(*planned);
    out.push_back(planned->plan.step);
    plans.push_back(std::move(*planned));
    return &plans.back();
  }
  void complete() {
    const int64_t step = out.front();
    out.pop_front();
    scheduler.complete(step, ranks.take_answers(step));
    collect();
  }
  // As the engine does: two plans out whenever there is work.
  void finish() {
    for (int i = 0; i < 100000; ++i) {
      while (send() != nullptr) {
      }
      if (out.empty()) return;
      complete();
    }
  }
  Told run(server::GenerateRequest request) {
    const absl::StatusOr<int64_t> id = scheduler.submit(std::move(request));
    if (!id.ok()) {
      Told refused;
      refused.failed = id.status();
      return refused;
    }
    finish();
    return told[*id];
  }
  void collect() {
    for (server::SequenceEvent& e : scheduler.take_events()) {
      Told& t = told[e.id];
      if (const auto* accepted = std::get_if<server::Accepted>(&e.event)) {
        t.accepted = true;
        t.prompt_tokens = accepted->prompt_tokens;
        t.cached_tokens = accepted->cached_tokens;
      } else if (const auto* token = std::get_if<server::Token>(&e.event)) {
        t.answer.push_back(token->id);
        t.tokens.push_back(*token);
      } else if (const auto* scored = std::get_if<server::PromptLogprob>(&e.event)) {
        t.scored.push_back(*scored);
      } else if (const auto* progress = std::get_if<server::PrefillProgress>(&e.event)) {
        t.progress.push_back(*progress);
      } else if (const auto* finished = std::get_if<server::Finished>(&e.event)) {
        t.finished = *finished;
      } else if (const auto* failed = std::get_if<server::Failed>(&e.event)) {
        t.failed = failed->status;
      }
    }
  }

  server::Scheduler scheduler;
  FakeRanks ranks;
  std::deque<int64_t> out;
  std::deque<server::PlannedStep> plans;  // all, in order
  std::map<int64_t, Told> told;
};

inline std::vector<int32_t> some_ids(int64_t n, int32_t from = 1) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>((static_cast<int64_t>(i) * 7 + from) % kDriverVocab);
  }
  return ids;
}

inline server::GenerateRequest ask(std::vector<int32_t> prompt, int32_t max_tokens,
                                   std::string session = "") {
  server::GenerateRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.session = std::move(session);
  return request;
}

}  // namespace annulus::testing
