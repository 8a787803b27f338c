// SPDX-License-Identifier: Apache-2.0
// How the scheduler makes a plan: pending ops, admissions, decode rows, prompt chunks, groups.
#include <algorithm>
#include <utility>

#include "kernels/core/check.h"
#include "server/kv_budget.h"
#include "server/plan_ops.h"
#include "server/scheduler.h"
#include "server/step_cost.h"

namespace annulus::server {

using parallel::DecodeRow;
using parallel::Item;
using parallel::Load;
using parallel::Placement;
using parallel::Wanted;

namespace {

// The front end's rows of a slot, by rank.
std::vector<int64_t> rows_of(const parallel::ShardState& state, int32_t slot, int64_t length) {
  std::vector<int64_t> rows(static_cast<size_t>(state.cp), 0);
  const auto it = state.slots.find(slot);
  if (it == state.slots.end()) return rows;
  for (size_t r = 0; r < rows.size(); ++r) rows[r] = rows_below(it->second.ranks[r], length);
  return rows;
}

}  // namespace

std::optional<PlannedStep> Scheduler::next() {
  if (!serving_ || out_.size() >= kPlansAhead) return std::nullopt;
  if (!out_.empty() && !out_.back().summary.decode_only && out_.back().expected_us > kLongStepUs) {
    return std::nullopt;
  }
  Draft draft;
  draft.plan.ops = std::exchange(pending_ops_, {});
  admit_waiting(draft);
  balance_decodes(draft);
  add_decodes(draft);
  add_prefills(draft);
  // Ops alone are worth a step (they give memory back) only where nothing else is going on.
  if (draft.plan.items.empty() && (draft.plan.ops.empty() || !out_.empty())) {
    pending_ops_ = std::move(draft.plan.ops);
    return std::nullopt;
  }

  PlannedStep planned;
  planned.plan = std::move(draft.plan);
  parallel::StepPlan& plan = planned.plan;
  plan.epoch = epoch_;
  plan.step = step_++;
  plan.digest = state_.digest;
  plan.groups = group_items(policy_, draft.loads, draft.forced);
  planned.expected_us = step_us(policy_, draft.loads, plan.groups);
  planned.before = state_;
  parallel::apply_ops(planned.before, plan);
  state_ = parallel::advance(std::move(state_), plan);

  Out out;
  out.step = plan.step;
  out.work = std::move(draft.work);
  out.expected_us = planned.expected_us;
  out.summary.decode_only =
      !plan.items.empty() && std::all_of(plan.items.begin(), plan.items.end(), [](const Item& i) {
        return i.placement == Placement::kDecode;
      });
  for (const parallel::Group& group : plan.groups) {
    out.summary.groups.push_back({group.variant, {}});
    for (int32_t i : group.items) {
      if (!out.summary.decode_only)  // what only prompts teach (profile_learner.h)
        out.summary.groups.back().loads.push_back(draft.loads[static_cast<size_t>(i)]);
      out.work[static_cast<size_t>(i)].variant = group.variant;
    }
  }
  for (const Item& item : plan.items) {
    out.items.push_back(item);
    out.items.back().tokens = {};
  }
  out_.push_back(std::move(out));
  free_slots_.insert(cooling_slots_.begin(), cooling_slots_.end());
  cooling_slots_.clear();
  return planned;
}

void Scheduler::admit_waiting(Draft& draft) {
  while (!waiting_.empty() && running() < limits_.max_running) {
    if (!admit(waiting_.front(), draft)) return;
    Sequence& sequence = running_.emplace_back(std::move(waiting_.front()));
    waiting_.pop_front();
    emit(sequence.id, Accepted{sequence.request.request_id, sequence.request.session,
                               sequence.prompt, sequence.cached});
  }
}

bool Scheduler::admit(Sequence& sequence, Draft& draft) {
  const std::string& name = sequence.request.session;
  Session* session = name.empty() ? nullptr : sessions_.find(name);
  int64_t reused = session != nullptr && session->slot >= 0 ? reusable(sequence, *session) : 0;
  int32_t slot = session != nullptr ? session->slot : -1;
  std::vector<int64_t> wanted = rows_wanted(sequence, reused, slot);
  if (!fits(wanted, session, Droppable::kIdle)) {
    if (!running_.empty()) return false;
    // Nothing will give rows back: sessions whose next turn waits must, and at last its own old
    // turns, which may lie so unevenly that only a fresh start fits.
    for (auto& [other, held] : sessions_.all()) {
      if (&held != session) drop_kv(held, draft.plan.ops);
    }
    if (!fits(wanted, session, Droppable::kIdle)) {
      reused = 0;
      slot = -1;
      wanted = rows_wanted(sequence, 0, -1);
      if (session != nullptr) drop_kv(*session, draft.plan.ops);
    }
    ANNULUS_CHECK(fits(wanted, session, Droppable::kNone), "request ", sequence.id,
                  " was accepted but fits no empty rank");
  }
  for (const auto& idle : sessions_.idle()) {
    if (fits(wanted, session, Droppable::kNone)) break;
    drop_kv(idle->second, draft.plan.ops);
  }

  const parallel::SamplingParams& sampling = sequence.request.sampling;
  if (slot < 0) {
    slot = take_slot();
    draft.plan.ops.push_back(admit_op(
        slot, parallel::choose_decode_base(state_, decode_rows(), sequence.prompt), sampling));
  } else {
    if (reused < session->kv) {
      draft.plan.ops.push_back(truncate_op(slot, reused));
    }
    if (state_.slots.at(slot).sampling != sampling) {
      draft.plan.ops.push_back(sampling_op(slot, sampling));
    }
  }
  if (session != nullptr) {
    session->slot = slot;
    session->kv = reused;
  }
  sequence.slot = slot;
  sequence.cached = reused;
  sequence.planned = reused;
  sequence.reserved_rows = std::move(wanted);
  return true;
}

// The longest prefix that need not be computed again: what is held, short of the last prompt token
// (its logits are wanted) and of the first position whose logits are asked for.
int64_t Scheduler::reusable(const Sequence& sequence, const Session& session) const {
  int64_t most = std::min(session.kv, sequence.prompt - 1);
  if (!sequence.scored.empty()) most = std::min(most, sequence.scored.front());
  const auto end = sequence.tokens.begin() + most;
  return std::mismatch(sequence.tokens.begin(), end, session.tokens.begin()).first -
         sequence.tokens.begin();
}

// By rank: what is reused, what will come, in whole pages.
std::vector<int64_t> Scheduler::rows_wanted(const Sequence& sequence, int64_t reused,
                                            int32_t slot) const {
  const int64_t more =
      rows_bound(reused, sequence.prompt, sequence.max_tokens - 1, state_.cp, chunk_of(sequence));
  std::vector<int64_t> rows = slot >= 0 ? rows_of(state_, slot, reused)
                                        : std::vector<int64_t>(static_cast<size_t>(state_.cp), 0);
  for (int64_t& r : rows) r = round_to_pages(r + more, limits_.page_tokens);
  return rows;
}

bool Scheduler::fits(const std::vector<int64_t>& wanted, const Session* own,
                     Droppable droppable) const {
  std::vector<int64_t> taken = wanted;
  for (const Sequence& sequence : running_) {
    for (size_t r = 0; r < taken.size(); ++r) taken[r] += sequence.reserved_rows[r];
  }
  for (const auto& [name, session] : sessions_.all()) {
    if (&session == own || session.slot < 0) continue;
    if (session.idle() && droppable == Droppable::kIdle) continue;
    const int64_t request = session.request;
    const bool runs = std::any_of(running_.begin(), running_.end(),
                                  [&](const Sequence& sequence) { return sequence.id == request; });
    if (runs) continue;  // counted with its sequence
    const std::vector<int64_t> rows = rows_of(state_, session.slot, session.kv);
    for (size_t r = 0; r < taken.size(); ++r) {
      taken[r] += round_to_pages(rows[r], limits_.page_tokens);
    }
  }
  return *std::max_element(taken.begin(), taken.end()) <= kv_capacity_rows_;
}

int32_t Scheduler::take_slot() {
  if (free_slots_.empty()) return slots_made_++;
  return free_slots_.extract(free_slots_.begin()).value();
}

std::vector<DecodeRow> Scheduler::decode_rows() const {
  std::vector<DecodeRow> rows;
  for (const Sequence& sequence : running_) {
    if (sequence.prefilling() || sequence.all_planned()) continue;
    rows.push_back({sequence.planned, state_.slots.at(sequence.slot).decode_base});
  }
  return rows;
}

// Sequences leave by chance; those that stay are spread over the ranks again.
void Scheduler::balance_decodes(Draft& draft) {
  if (state_.cp == 1) return;
  const std::vector<DecodeRow> rows = decode_rows();
  const std::vector<int32_t> bases = parallel::even_decode_bases(state_, rows);
  size_t i = 0;
  for (const Sequence& sequence : running_) {
    if (sequence.prefilling() || sequence.all_planned()) continue;
    const DecodeRow& row = rows[i];
    const int32_t base = bases[i++];
    if (base == row.decode_base) continue;
    const int64_t left = sequence.prompt + sequence.max_tokens - 1 - sequence.planned;
    const int64_t more = rows_bound(0, 0, left, state_.cp, 0);
    const std::vector<int64_t> held = rows_of(state_, sequence.slot, sequence.planned);
    bool within = true;
    for (size_t r = 0; r < held.size(); ++r) within &= held[r] + more <= sequence.reserved_rows[r];
    if (!within) continue;
    draft.plan.ops.push_back(rebase_op(sequence.slot, base));
  }
}

void Scheduler::add_decodes(Draft& draft) {
  for (Sequence& sequence : running_) {
    if (sequence.prefilling() || sequence.all_planned()) continue;
    const int64_t position = sequence.planned;
    Item item;
    item.slot = sequence.slot;
    item.placement = Placement::kDecode;
    item.spans = {{.first = position, .count = 1, .stride = 1}};
    if (position < sequence.known()) {
      item.tokens = {sequence.tokens[static_cast<size_t>(position)]};
    } else if (sequence.is_forced(position)) {
      item.tokens = {sequence.forced[static_cast<size_t>(position - sequence.prompt)]};
    } else {
      item.sampled = sequence.sampled;
    }
    item.wanted = prompt_wanted(sequence, position, position + 1);
    add_item(draft, sequence, std::move(item));
  }
}

void Scheduler::add_prefills(Draft& draft) {
  double left_us = limits_.max_step_us;
  if (!draft.loads.empty()) {
    left_us -= step_us(policy_, draft.loads, group_items(policy_, draft.loads, draft.forced));
  }
  int64_t left_logprobs = kStepLogprobs;
  bool first_chunk = true;
  for (Sequence& sequence : running_) {
    if (!sequence.prefilling()) continue;
    const int64_t first = sequence.planned;
    const ChunkLimits limits{left_us, chunk_of(sequence), first_chunk, variant_of(sequence),
                             most_chunk(sequence)};
    const int64_t end = chunk_end(policy_, first, sequence.prompt, limits);
    if (end == first) return;  // later prompts do not overtake
    std::vector<Wanted> wanted = prompt_wanted(sequence, first, end);
    for (const Wanted& w : wanted) left_logprobs -= 1 + w.top;
    if (left_logprobs < 0 && !first_chunk) return;
    first_chunk = false;
    left_us -= item_us(policy_, {end - first, first}, variant_of(sequence));
    Item item;
    item.slot = sequence.slot;
    item.placement = Placement::kPrompt;
    item.spans = {{.first = first, .count = static_cast<int32_t>(end - first), .stride = 1}};
    item.tokens.assign(sequence.tokens.begin() + first, sequence.tokens.begin() + end);
    item.wanted = std::move(wanted);
    add_item(draft, sequence, std::move(item));
  }
}

// What is wanted from positions [first, end): log-probabilities of the prompt, and from its last
// position on the next answer token, sampled or forced.
std::vector<Wanted> Scheduler::prompt_wanted(const Sequence& sequence, int64_t first,
                                             int64_t end) const {
  const int32_t top = std::max(sequence.request.top_logprobs, 0);
  std::vector<Wanted> wanted;
  const int64_t in_prompt = std::min(end, sequence.prompt - 1);
  const auto score = [&](int64_t position) {
    wanted.push_back({.position = position,
                      .target = sequence.tokens[static_cast<size_t>(position + 1)],
                      .top = top});
  };
  if (sequence.score_all) {
    for (int64_t position = first; position < in_prompt; ++position) score(position);
  } else {
    auto it = std::lower_bound(sequence.scored.begin(), sequence.scored.end(), first);
    for (; it != sequence.scored.end() && *it < in_prompt; ++it) score(*it);
  }
  if (end < sequence.prompt) return wanted;
  Wanted last{.position = end - 1, .top = top};
  if (!sequence.is_forced(end)) {
    last.sample = true;
    last.logprob = sequence.request.top_logprobs >= 0;
  } else {
    last.target = sequence.forced[static_cast<size_t>(end - sequence.prompt)];
    const bool scored =
        end == sequence.prompt &&
        (sequence.score_all || (!sequence.scored.empty() && sequence.scored.back() == end - 1));
    if (sequence.request.top_logprobs < 0 && !scored) return wanted;
  }
  wanted.push_back(last);
  return wanted;
}

void Scheduler::add_item(Draft& draft, Sequence& sequence, Item item) {
  Work work;
  work.id = sequence.id;
  work.prefill = item.placement == Placement::kPrompt;
  const Load load{item.count(), sequence.planned};
  sequence.planned += load.n_new;
  work.end = sequence.planned;
  if (work.prefill) {
    const auto predictions = parallel::predict(policy_, std::span(&load, 1));
    for (size_t v = 0; v < predictions.size(); ++v) work.predicted_us[v] = predictions[v].us;
  }
  for (const Wanted& wanted : item.wanted) {
    if (wanted.sample) sequence.sampled = {step_, draft.rows++};
  }
  draft.work.push_back(std::move(work));
  draft.loads.push_back(load);
  draft.forced.push_back(variant_of(sequence));
  draft.plan.items.push_back(std::move(item));
}

}  // namespace annulus::server
