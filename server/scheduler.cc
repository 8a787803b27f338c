// SPDX-License-Identifier: Apache-2.0
// Requests, sessions, epochs and endings; plans are made in scheduler_plan.cc.
#include "server/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "server/kv_budget.h"
#include "server/plan_ops.h"
#include "server/request_check.h"

namespace annulus::server {

using parallel::Op;
using parallel::WantedResult;

Scheduler::Scheduler(SchedulerLimits limits) : limits_(std::move(limits)) {}

void Scheduler::begin_epoch(int64_t epoch, const parallel::PolicyInput& policy,
                            int64_t kv_capacity_rows) {
  ANNULUS_CHECK(!serving_, "epoch ", epoch, " begins in epoch ", epoch_);
  serving_ = true;
  epoch_ = epoch;
  step_ = 0;
  policy_ = policy;
  kv_capacity_rows_ = kv_capacity_rows;
  state_ = {};
  state_.cp = policy.cp;
}

void Scheduler::lose_epoch(const absl::Status& why) {
  serving_ = false;
  for (const Sequence& sequence : running_) emit(sequence.id, Failed{why});
  for (const Sequence& sequence : waiting_) emit(sequence.id, Failed{why});
  running_.clear();
  waiting_.clear();
  out_.clear();
  pending_ops_.clear();
  free_slots_.clear();
  cooling_slots_.clear();
  slots_made_ = 0;
  // A session keeps what it had before its failed request, so that the request can be repeated.
  for (auto it = sessions_.all().begin(); it != sessions_.all().end();) {
    Session& session = it->second;
    session.slot = -1;
    session.kv = 0;
    session.request = -1;
    it = session.tokens.empty() ? sessions_.all().erase(it) : std::next(it);
  }
}

absl::StatusOr<int64_t> Scheduler::submit(GenerateRequest request) {
  if (!serving_) return absl::UnavailableError("the ranks are not ready");
  absl::Status valid = check_request(request, limits_.vocab, limits_.debug_requests);
  if (!valid.ok()) return valid;
  // Those for which there is a place in the next step do not wait.
  const int64_t places = std::max<int64_t>(limits_.max_running - running(), 0);
  if (waiting() >= std::max<int64_t>(limits_.max_queue, places)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting(), " requests wait already; try again later"));
  }
  Sequence sequence;
  const Session* session = request.session.empty() ? nullptr : sessions_.find(request.session);
  if (session != nullptr && !session->idle()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "session \"", request.session, "\" is busy with another request; wait or cancel it"));
  }
  if (request.append && session == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        "there is no session \"", request.session,
        "\" (closed, dropped or never begun): send the whole conversation without append"));
  }
  if (request.append) {
    sequence.tokens = session->tokens;
    sequence.tokens.insert(sequence.tokens.end(), request.prompt.begin(), request.prompt.end());
    request.prompt = {};
  } else {
    sequence.tokens = std::exchange(request.prompt, {});
  }
  sequence.prompt = sequence.known();
  sequence.forced = std::exchange(request.forced_tokens, {});
  sequence.stop_ids = request.stop_ids;
  if (!request.ignore_eos) {
    sequence.stop_ids.insert(sequence.stop_ids.end(), limits_.eos_ids.begin(),
                             limits_.eos_ids.end());
  }
  std::sort(sequence.stop_ids.begin(), sequence.stop_ids.end());
  sequence.score_all = request.all_prompt_logprobs;
  sequence.scored = std::exchange(request.prompt_logprob_positions, {});
  std::sort(sequence.scored.begin(), sequence.scored.end());
  sequence.scored.erase(std::unique(sequence.scored.begin(), sequence.scored.end()),
                        sequence.scored.end());
  sequence.request = std::move(request);
  if (absl::Status s = set_lengths(sequence); !s.ok()) return s;

  sequence.id = ++last_id_;
  if (sequence.request.request_id.empty()) {
    sequence.request.request_id = absl::StrCat("request-", sequence.id);
  }
  if (!sequence.request.session.empty()) {
    sessions_.find_or_create(sequence.request.session).request = sequence.id;
  }
  waiting_.push_back(std::move(sequence));
  return waiting_.back().id;
}

absl::Status Scheduler::set_lengths(Sequence& sequence) const {
  const int64_t prompt = sequence.prompt;
  if (prompt == 0) {
    return absl::InvalidArgumentError("the prompt is empty; it needs at least one token");
  }
  if (prompt >= limits_.context) {
    return absl::OutOfRangeError(absl::StrCat(
        "the prompt has ", prompt, " tokens and leaves no room for an answer in the context of ",
        limits_.context, "; shorten it or serve with a larger --context"));
  }
  for (int64_t position : sequence.scored) {
    if (position < 0 || position >= prompt) {
      return absl::InvalidArgumentError(absl::StrCat("prompt_logprob_positions has ", position,
                                                     "; the prompt has positions 0 to ",
                                                     prompt - 1));
    }
  }
  const int64_t asked = sequence.request.max_tokens;
  const int64_t room = limits_.context - prompt;
  const int64_t held = most_answer_tokens(prompt, state_.cp, chunk_of(sequence), kv_capacity_rows_,
                                          limits_.page_tokens);
  sequence.max_tokens = asked > 0 ? std::min(asked, room) : std::min(room, held);
  if (held < 1 || sequence.max_tokens > held) {
    return absl::OutOfRangeError(absl::StrCat(
        "a prompt of ", prompt, " tokens with max_tokens ", sequence.max_tokens,
        " needs more than the ", kv_capacity_rows_, " KV rows of each of ", state_.cp,
        " context-parallel ranks (context ", limits_.context, "); ",
        held < 1 ? "shorten the prompt"
                 : absl::StrCat("ask for at most ", held, " tokens or shorten the prompt"),
        ", or serve with more ranks or KV memory"));
  }
  if (static_cast<int64_t>(sequence.forced.size()) > sequence.max_tokens) {
    return absl::OutOfRangeError(absl::StrCat("forced_tokens has ", sequence.forced.size(),
                                              " ids; after a prompt of ", prompt,
                                              " tokens there is room for ", sequence.max_tokens));
  }
  return absl::OkStatus();
}

int32_t Scheduler::chunk_of(const Sequence& sequence) const {
  const int32_t asked = sequence.request.chunk_tokens.value_or(limits_.chunk_tokens);
  return static_cast<int32_t>(std::min<int64_t>(asked, most_chunk(sequence)));
}

int64_t Scheduler::most_chunk(const Sequence& sequence) const {
  if (!sequence.score_all && sequence.scored.empty()) return int64_t{1} << 30;
  const int64_t each = 1 + std::max(sequence.request.top_logprobs, 0);
  return std::min(kStepLogprobs / each, kStepScored);
}

std::optional<parallel::Variant> Scheduler::variant_of(const Sequence& sequence) const {
  return sequence.request.variant ? sequence.request.variant : limits_.variant;
}

Sequence* Scheduler::find_running(int64_t id) {
  const auto it = std::find_if(running_.begin(), running_.end(),
                               [&](const Sequence& sequence) { return sequence.id == id; });
  return it == running_.end() ? nullptr : &*it;
}

void Scheduler::cancel(int64_t id) {
  if (find_running(id) != nullptr) {
    retire(id, FinishReason::kCancelled);
    return;
  }
  const auto it = std::find_if(waiting_.begin(), waiting_.end(),
                               [&](const Sequence& sequence) { return sequence.id == id; });
  if (it == waiting_.end()) return;
  emit(id, Accepted{it->request.request_id, it->request.session, it->prompt, 0});
  Finished finished{FinishReason::kCancelled, "", {}};
  finished.usage.prompt_tokens = it->prompt;
  emit(id, std::move(finished));
  const std::string name = it->request.session;
  waiting_.erase(it);
  if (name.empty()) return;
  Session& session = *sessions_.find(name);
  session.request = -1;
  if (session.tokens.empty()) sessions_.erase(name);
}

void Scheduler::finish_early(int64_t id, int64_t keep) {
  Sequence* sequence = find_running(id);
  if (sequence == nullptr) return;
  ANNULUS_CHECK(keep >= 0 && keep <= sequence->answered(), "keep ", keep, " of ",
                sequence->answered());
  sequence->tokens.resize(static_cast<size_t>(sequence->prompt + keep));
  retire(id, FinishReason::kStop);
}

// The tokens that the client has seen stay; the last one has not been fed, or is taken back, so
// that what a session holds does not depend on how far ahead the ranks were.
void Scheduler::retire(int64_t id, FinishReason reason) {
  const auto it = std::find_if(running_.begin(), running_.end(),
                               [&](const Sequence& sequence) { return sequence.id == id; });
  Sequence& sequence = *it;
  sequence.usage.prompt_tokens = sequence.prompt;
  sequence.usage.cached_tokens = sequence.cached;
  sequence.usage.completion_tokens = sequence.answered();
  emit(id, Finished{reason, "", sequence.usage});
  if (sequence.request.session.empty()) {
    pending_ops_.push_back(release_op(sequence.slot));
    cooling_slots_.push_back(sequence.slot);
  } else {
    Session& session = *sessions_.find(sequence.request.session);
    const int64_t keep = std::min(sequence.planned, sequence.known() - 1);
    if (keep < sequence.planned) {
      pending_ops_.push_back(truncate_op(sequence.slot, keep));
    }
    session.tokens = std::move(sequence.tokens);
    session.slot = sequence.slot;
    session.kv = keep;
    session.request = -1;
    sessions_.touch(session);
  }
  running_.erase(it);
  limit_sessions();
}

void Scheduler::limit_sessions() {
  std::vector<Sessions::Map::iterator> idle = sessions_.idle();
  const size_t allowed = static_cast<size_t>(std::max(limits_.max_sessions, 0));
  for (size_t i = 0; i + allowed < idle.size(); ++i) {
    drop_kv(idle[i]->second, pending_ops_);
    sessions_.all().erase(idle[i]);
  }
}

void Scheduler::drop_kv(Session& session, std::vector<Op>& ops) {
  if (session.slot >= 0) {
    ops.push_back(release_op(session.slot));
    cooling_slots_.push_back(session.slot);
  }
  session.slot = -1;
  session.kv = 0;
}

absl::Status Scheduler::rewind(const std::string& name, int64_t length) {
  Session* session = sessions_.find(name);
  if (session == nullptr) {
    return absl::NotFoundError(absl::StrCat("there is no session \"", name, "\""));
  }
  if (!session->idle()) {
    return absl::FailedPreconditionError(
        absl::StrCat("session \"", name, "\" is busy with a request; wait or cancel it"));
  }
  const int64_t held = static_cast<int64_t>(session->tokens.size());
  if (length < 0 || length > held) {
    return absl::OutOfRangeError(
        absl::StrCat("length is ", length, "; session \"", name, "\" holds ", held, " tokens"));
  }
  if (length == 0) {
    drop_kv(*session, pending_ops_);
    sessions_.erase(name);
    return absl::OkStatus();
  }
  session->tokens.resize(static_cast<size_t>(length));
  if (session->kv > length) {
    session->kv = length;
    pending_ops_.push_back(truncate_op(session->slot, length));
  }
  sessions_.touch(*session);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Scheduler::session_tokens(const std::string& name) const {
  const Session* session = sessions_.find(name);
  if (session == nullptr) {
    return absl::NotFoundError(absl::StrCat("there is no session \"", name, "\""));
  }
  return session->tokens;
}

StepSummary Scheduler::complete(int64_t step, std::vector<WantedResult> results) {
  ANNULUS_CHECK(!out_.empty() && out_.front().step == step, "answer to step ", step, ", ",
                out_.size(), " plans are out");
  const Out out = std::move(out_.front());
  out_.pop_front();
  std::sort(results.begin(), results.end(), [](const WantedResult& a, const WantedResult& b) {
    return std::pair(a.item, a.position) < std::pair(b.item, b.position);
  });
  size_t next = 0;
  for (size_t i = 0; i < out.items.size(); ++i) {
    const size_t begin = next;
    for (const parallel::Wanted& wanted : out.items[i].wanted) {
      ANNULUS_CHECK(next < results.size() && results[next].item == static_cast<int32_t>(i) &&
                        results[next].position == wanted.position,
                    "step ", step, " has no answer for item ", i, " position ", wanted.position);
      ++next;
    }
    const Work& work = out.work[i];
    Sequence* sequence = find_running(work.id);
    if (sequence == nullptr) continue;  // it ended while this plan was out
    const auto variant = static_cast<size_t>(work.variant);
    const WantedResult* last = nullptr;  // of the position that predicts the next unknown token
    for (size_t r = begin; r < next; ++r) {
      if (results[r].position == work.end - 1) last = &results[r];
    }
    if (work.prefill) {
      ++sequence->usage.prefill_steps[variant];
      PrefillProgress progress{work.end, sequence->prompt, work.variant, {}};
      std::copy(std::begin(work.predicted_us), std::end(work.predicted_us), progress.predicted_us);
      emit(work.id, progress);
      for (size_t r = begin; r < next; ++r) score_prompt(*sequence, results[r]);
      if (work.end < sequence->prompt) continue;
    } else {
      ++sequence->usage.decode_steps[variant];
    }
    take_token(*sequence, last);
  }
  ANNULUS_CHECK(next == results.size(), "step ", step, " has ", results.size(),
                " answers, its plan wants ", next);
  return out.summary;
}

void Scheduler::score_prompt(Sequence& sequence, const WantedResult& result) {
  const int64_t position = result.position;
  if (!sequence.score_all &&
      !std::binary_search(sequence.scored.begin(), sequence.scored.end(), position)) {
    return;
  }
  const bool has_next = position + 1 < sequence.prompt;
  emit(sequence.id,
       PromptLogprob{position, has_next ? sequence.tokens[static_cast<size_t>(position + 1)] : -1,
                     has_next ? result.target_logprob : 0, result.top});
}

// The next answer token is known. The sequence is gone when it was the last.
void Scheduler::take_token(Sequence& sequence, const WantedResult* result) {
  const int64_t position = sequence.known();
  Token token;
  if (sequence.is_forced(position)) {
    token.id = sequence.forced[static_cast<size_t>(position - sequence.prompt)];
    if (result != nullptr) token.logprob = result->target_logprob;
  } else {
    ANNULUS_CHECK(result != nullptr && result->token >= 0 && result->token < limits_.vocab,
                  "no token was sampled for position ", position);
    token.id = result->token;
    token.logprob = result->logprob;
  }
  if (result != nullptr && sequence.request.top_logprobs > 0) token.top = result->top;
  sequence.tokens.push_back(token.id);
  const bool stop =
      std::binary_search(sequence.stop_ids.begin(), sequence.stop_ids.end(), token.id);
  const bool full = sequence.answered() >= sequence.max_tokens;
  events_.push_back({sequence.id, std::move(token), stop || full, stop});
  if (stop || full) retire(sequence.id, stop ? FinishReason::kStop : FinishReason::kLength);
}

std::vector<SequenceEvent> Scheduler::take_events() {
  return std::exchange(events_, {});
}

}  // namespace annulus::server
