// SPDX-License-Identifier: Apache-2.0
// Rank::create and a step of RankOn<Queue>, instantiated for each queue in on_<device>.cc.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "parallel/comm_ids.h"
#include "parallel/decode_key.h"
#include "parallel/kv_store_inl.h"
#include "parallel/measure_inl.h"
#include "parallel/rank_answers_inl.h"
#include "parallel/rank_on.h"
#include "parallel/ring_attention_inl.h"

namespace annulus::parallel {
namespace rank_on {

// A breadcrumb, and a new deadline: a peer that is slow is not gone while this rank moves on.
template <class Queue>
void RankOn<Queue>::reached(int32_t at_layer, int32_t at_hop) {
  layer_.store(at_layer, std::memory_order_relaxed);
  hop_.store(at_hop, std::memory_order_relaxed);
  progress_.fetch_add(1, std::memory_order_relaxed);
  const Clock::time_point deadline = Clock::now() + patience_;
  groups_.cp->set_deadline(deadline);
  groups_.tp->set_deadline(deadline);
  if constexpr (kRepeats) {
    if (queue_.records()) return;  // a capture is no place for other work
  }
  // Launches wait where the device is far behind: whoever waits for the step before need not.
  if (told_ != nullptr && begun() > 0 && queue_.ended(oldest().ticket)) (*told_)(end());
}

// What validate() cannot know beside what it does: this epoch, the vocabulary, the sampled ids that
// are still here. Room for the KV is checked as it is taken.
template <class Queue>
absl::Status RankOn<Queue>::check(const StepPlan& plan) const {
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("step ", plan.step, ": ", parts...));
  };
  if (plan.epoch != epoch_) return bad("a plan of epoch ", plan.epoch, " in epoch ", epoch_);
  if (absl::Status valid = validate(state_, plan, cp_rank()); !valid.ok()) return valid;
  for (const Item& item : plan.items) {
    for (const int32_t token : item.tokens) {
      if (token >= config_.vocab) return bad("token id ", token, " of ", config_.vocab);
    }
    for (const Wanted& wanted : item.wanted) {
      if (wanted.target >= config_.vocab)
        return bad("target ", wanted.target, " of ", config_.vocab);
    }
    if (item.sampled.step < 0) continue;
    if (absl::Status known = sampled_.check(item.sampled); !known.ok()) return bad(known.message());
  }
  return absl::OkStatus();
}

template <class Queue>
StepRows RankOn<Queue>::rows_of(const StepPlan& plan) {
  StepRows rows;
  for (const Group& group : plan.groups) {
    for (const int32_t i : group.items) {
      const Item& item = plan.items[index(i)];
      const std::vector<int32_t> mine = positions(shard_item(state_, item)[index(cp_rank())]);
      const int64_t first = static_cast<int64_t>(rows.positions.size());
      if (item.sampled.step < 0) {
        ANNULUS_CHECK(item.tokens.size() == mine.size(), "item ", i, ": ", item.tokens.size(),
                      " tokens for ", mine.size(), " rows");
        rows.ids.insert(rows.ids.end(), item.tokens.begin(), item.tokens.end());
      } else if (!mine.empty()) {
        rows.ids.push_back(~sampled_.at(item.sampled));
      }
      const std::vector<int64_t> where = store_.append(item.slot, mine);
      rows.slot_rows.insert(rows.slot_rows.end(), where.begin(), where.end());
      rows.positions.insert(rows.positions.end(), mine.begin(), mine.end());
      for (const Wanted& wanted : item.wanted) {
        const auto at = std::lower_bound(mine.begin(), mine.end(), wanted.position);
        if (at != mine.end() && *at == wanted.position) {
          rows.wanted.push_back({i, first + (at - mine.begin()), wanted});
        }
      }
    }
  }
  std::stable_sort(rows.wanted.begin(), rows.wanted.end(),
                   [](const OwnWanted& a, const OwnWanted& b) { return a.item < b.item; });
  return rows;
}

template <class Queue>
void RankOn<Queue>::attend(int32_t l, std::span<const GroupLayout> layouts,
                           std::span<const int64_t> slot_rows, kernels::ConstTensor q,
                           kernels::ConstTensor k, kernels::ConstTensor v, Tensor out,
                           StepResult& result) {
  reached(l, 0);
  const typename Queue::Mark mark(queue_);
  queue_.phases().enter(Phase::kKvAppend);
  kernels::kv_append(queue_, k, v, store_.layer(l), slot_rows, store_.format());
  queue_.phases().enter(Phase::kAttention);
  const Tensor queries = {
      queue_.template scratch<std::byte>(q.rows * q.cols * kernels::size_bytes(shape_.dtype)),
      shape_.dtype, q.rows, q.cols, q.cols};
  kernels::convert(queue_, queries, q);
  const kernels::Partial all = {static_cast<float*>(out.data),
                                queue_.template scratch<float>(q.rows * shape_.heads), q.rows,
                                shape_.heads, shape_.head_dim};
  const float scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim));
  AttentionCall<Queue> call{*groups_.cp, store_, l, scale, {step_.load(), l, 0, 0, ""}};
  call.on_visit = [&](int32_t at_hop) { reached(l, at_hop); };
  for (size_t g = 0; g < layouts.size(); ++g) {
    const GroupLayout& group = layouts[g];
    const int64_t mine = group.q_rows[index(cp_rank())];
    const double waited = groups_.cp->waited_us(), returned = call.all_to_all_us;
    const int64_t sent = groups_.cp->bytes_sent();
    const Clock::time_point start = Clock::now();
    ring_attend(queue_, group, call, queries.slice_rows(group.row_first, mine),
                all.slice(group.row_first, mine));
    const double exposed = groups_.cp->waited_us() - waited;
    GroupReport& report = result.groups[g];
    report.bytes_sent += groups_.cp->bytes_sent() - sent;
    report.exposed_us += static_cast<float>(exposed);
    report.all_to_all_us += static_cast<float>(call.all_to_all_us - returned);
    report.attend_us += static_cast<float>(us_since(start) - exposed);
  }
  workspace_peak_ = std::max(workspace_peak_, call.workspace_bytes);
}

template <class Queue>
absl::Status RankOn<Queue>::begin(const StepPlan& plan, Clock::time_point deadline,
                                  const Told& told) {
  ANNULUS_CHECK(begun() < most_begun(), begun(), " steps are under way");
  UnderWay& step = steps_[index(begun_ % kMostBegun)];
  step.start = Clock::now();
  step.waited_us = waited_us();
  queue_.phases().restart();
  name_step(plan.step);
  if (absl::Status possible = check(plan); !possible.ok()) return possible;
  step_.store(plan.step);
  workspace_peak_ = 0;
  patience_ = step.patience = deadline - step.start;
  told_ = told ? &told : nullptr;
  const absl::Cleanup nobody = [this] { told_ = nullptr; };
  reached(0, 0);
  enqueue(plan, step);  // until its end() the host waits for nothing
  step.ticket = queue_.close();
  step.enqueued = Clock::now();
  ++begun_;
  return absl::OkStatus();
}

template <class Queue>
void RankOn<Queue>::enqueue(const StepPlan& plan, UnderWay& step) {
  for (const Op& op : plan.ops) {
    apply_to_store(store_, op);
    position_lists_.apply(op);
  }
  // In place: a step that fails ends the epoch, and the state with it. Who computes what depends on
  // slots' decode bases alone, which items do not change.
  state_ = advance(std::move(state_), plan);
  std::vector<GroupLayout> layouts =
      layout_groups(state_, plan, cp_rank(), policy_, position_lists_);
  StepRows rows = rows_of(plan);

  StepResult& result = step.result = {};
  result.epoch = plan.epoch;
  result.step = plan.step;
  result.world_rank = world_rank_;
  for (const GroupLayout& layout : layouts) {
    result.groups.push_back({.variant = layout.variant, .formula_bytes = layout.formula_bytes});
  }
  step.wanted = std::move(rows.wanted);
  if (!plan.items.empty()) {
    const typename Queue::Mark mark(queue_);
    const int64_t n = static_cast<int64_t>(rows.ids.size()), d = config_.head_dim;
    cos_sin_.resize(index(n * d));
    fill_cos_sin(frequencies_, rows.positions, cos_sin_.data());
    const auto cos_sin = queue_.upload(std::span<const float>(cos_sin_));
    auto ids = queue_.upload(std::span<const int32_t>(rows.ids));
    if (std::any_of(rows.ids.begin(), rows.ids.end(), [](int32_t id) { return id < 0; })) {
      const std::span<int32_t> known(queue_.template scratch<int32_t>(n), index(n));
      kernels::resolve_ids(queue_, known, ids, sampled_.data());
      ids = known;
    }
    const auto slot_rows = queue_.upload(std::span<const int64_t>(rows.slot_rows));
    upload(queue_, std::span(layouts));
    const Tensor x = matrix(queue_.template scratch<float>(n * config_.dim), n, config_.dim);
    const SharedIds shared = room_for_sampled(plan);
    const auto compute = [&] {
      // A body that is logged and then captured runs twice: its times are those of the second run.
      for (GroupReport& report : result.groups)
        report.attend_us = report.exposed_us = report.all_to_all_us = 0;
      LlamaHooks hooks;
      hooks.attend = [&](int32_t layer, auto q, auto k, auto v, Tensor out) {
        attend(layer, layouts, slot_rows, q, k, v, out, result);
      };
      int32_t sums = 0;
      if (topology_.tp > 1) {
        hooks.sums = reinterpret_cast<float*>(
            groups_.tp->symmetric_memory(n * config_.dim * static_cast<int64_t>(sizeof(float))));
        hooks.all_reduce = [&](int32_t layer, Tensor sum) {
          groups_.tp->all_reduce(queue_, {sum.row<float>(0), index(sum.rows * sum.cols)},
                                 {plan.step, layer, sums++ % 2, 0, "tp sum"});
        };
      }
      forward(queue_, config_, *weights_, topology_.tp, ids, matrix(cos_sin.data(), n, d), hooks,
              x);
      gather_sampled(shared, answer_wanted(plan, step.wanted, x, step.found));
    };
    if constexpr (!kRepeats) {
      compute();
    } else {
      const uint64_t key = decode_key(plan, layouts);
      queue_.repeat(key, compute);
    }
    keep_sampled(shared);
    result.rows = static_cast<int32_t>(n);
    result.logit_rows = static_cast<int32_t>(std::ssize(step.wanted));
  }
  result.kv_rows = store_.rows_used();
  result.kv_bytes = store_.bytes_used();
  result.workspace_peak_bytes = workspace_peak_;
}

template <class Queue>
StepResult RankOn<Queue>::end() {
  UnderWay& step = oldest();
  name_step(step.result.step);
  queue_.finish(step.ticket, deadline_of(step));
  StepResult result = std::move(step.result);
  if (topology_.tp_rank(world_rank_) == 0) {
    result.wanted.resize(step.wanted.size());
    const auto answer = [&](int64_t r, int) {
      const OwnWanted& w = step.wanted[index(r)];
      const auto top = std::span(step.found.top).subspan(index(r * step.found.top_room));
      result.wanted[index(r)] =
          answer_of(step.found.answers[index(r)], top, config_.vocab, w.item, w.wanted);
    };
    if constexpr (Queue::kHostMemory) {
      queue_.parallel_for(std::ssize(step.wanted), answer);
    } else {
      for (int64_t r = 0; r < std::ssize(step.wanted); ++r) answer(r, 0);
    }
  }
  if (queue_.phases().enabled()) {
    for (const double us : queue_.phases().take()) {
      result.phase_us.push_back(static_cast<float>(us));
    }
  }
  ++ended_;
  result.waited_us = static_cast<float>(waited_us() - step.waited_us);
  // So that times of steps add up.
  result.step_us = static_cast<float>(us_since(std::max(step.start, last_end_)));
  last_end_ = Clock::now();
  return result;
}

}  // namespace rank_on

template <class Queue>
absl::StatusOr<std::unique_ptr<Rank>> Rank::create(
    const LlamaConfig& config, std::shared_ptr<const LlamaWeights<Queue>> weights,
    std::unique_ptr<Queue> queue, Groups<Queue> groups, Topology topology, int32_t world_rank,
    int64_t epoch, const RankOptions& options) {
  if (const absl::Status tp = check_tp(config, topology.tp); !tp.ok()) return tp;
  if (topology.world() > kMaxGroupSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("TP ", topology.tp, " x CP ", topology.cp, " is more than ", kMaxGroupSize,
                     " ranks, which is what message tags can tell apart"));
  }
  const int64_t context = options.context > 0 ? options.context : config.context;
  int64_t capacity = options.kv_capacity_rows;
  if (capacity <= 0) capacity = default_kv_rows(context, topology.cp, options.page_tokens);
  try {
    return std::make_unique<rank_on::RankOn<Queue>>(config, std::move(weights), std::move(queue),
                                                    groups, topology, world_rank, epoch, options,
                                                    capacity);
  } catch (const kernels::DeviceError& error) {
    return absl::ResourceExhaustedError(error.what());
  }
}

}  // namespace annulus::parallel
