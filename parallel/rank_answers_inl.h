// SPDX-License-Identifier: Apache-2.0
// What a rank finds for a step: logits and tokens of the wanted positions, and the ids that all
// ranks learn. All of it is only enqueued. Part of rank_inl.h.
#pragma once

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "parallel/rank_on.h"
#include "parallel/sampler.h"

namespace annulus::parallel::rank_on {

// Logits of the wanted rows, each where the vocabulary's shards are gathered, and what is asked of
// them, which is in `found` when the step is finished. Every rank of the column finds alike.
// Returns the ids that were sampled, in the plan's order, in the caller's scratch.
template <class Queue>
std::span<const int32_t> RankOn<Queue>::answer_wanted(const StepPlan& plan,
                                                      std::span<const OwnWanted> rows, Tensor x,
                                                      Found& found) {
  using kernels::Candidate;
  using kernels::LogitAnswer;
  const int32_t vocab = config_.vocab, part = vocab / topology_.tp;
  const int64_t all = std::ssize(rows);
  std::vector<kernels::LogitWish> wishes;
  int32_t sampled = 0;
  found.top_room = 0;
  for (const OwnWanted& w : rows) {
    const SlotShard& slot = state_.slots.at(plan.items[index(w.item)].slot);
    wishes.push_back(wish_of(slot.sampling, w.wanted, vocab, sampled));
    sampled += w.wanted.sample ? 1 : 0;
    found.top_room = std::max(found.top_room, int64_t{wishes.back().top});
  }
  kernels::SampleOut out = {queue_.template scratch<LogitAnswer>(all),
                            queue_.template scratch<Candidate>(all * found.top_room),
                            found.top_room, queue_.template scratch<int32_t>(sampled)};
  const std::span<const LogitAnswer> answers(out.answers, index(all));
  const std::span<const Candidate> top(out.top, index(all * found.top_room));
  const std::span<const int32_t> ids(out.ids, index(sampled));

  OpId op{step_.load(), config_.layers, 0, 0, "logits"};
  for (int64_t begin = 0; begin < all; begin += kLogitRows) {
    reached(config_.layers, 0);
    const typename Queue::Mark mark(queue_);
    const kernels::InPhase phase(queue_, Phase::kHead);
    const int64_t n = std::min(kLogitRows, all - begin);
    std::vector<int32_t> from;
    for (const OwnWanted& w : rows.subspan(index(begin), index(n)))
      from.push_back(static_cast<int32_t>(w.row));
    const Tensor picked = matrix(queue_.template scratch<float>(n * x.cols), n, x.cols);
    kernels::gather_rows(queue_, picked, x, queue_.upload(std::span<const int32_t>(from)));
    const Tensor own = matrix(queue_.template scratch<float>(n * part), n, part);
    logits(queue_, config_, *weights_, picked, own);
    kernels::Logits gathered = {own.template row<float>(0), n, topology_.tp, part};
    if (topology_.tp > 1) {
      float* const pieces = queue_.template scratch<float>(n * vocab);
      const std::vector<int64_t> bytes(index(topology_.tp), n * part * 4);
      groups_.tp->all_gather(queue_, std::as_bytes(std::span(gathered.data, index(n * part))),
                             std::as_writable_bytes(std::span(pieces, index(n * vocab))), bytes,
                             op);
      ++op.sequence;
      gathered.data = pieces;
    }
    queue_.phases().enter(Phase::kSample);
    const auto asked = std::span<const kernels::LogitWish>(wishes).subspan(index(begin), index(n));
    kernels::sample(queue_, gathered, queue_.upload(asked), out);
    out.answers += n;
    out.top += n * out.top_room;
  }
  found.answers.resize(answers.size());
  found.top.resize(top.size());
  queue_.download(std::span(found.answers), answers.data());
  queue_.download(std::span(found.top), top.data());
  return ids;
}

// All ranks learn every sampled id: the next step's owner of a sequence is another rank. Room
// first: it may be allocated, which should not wait behind a transfer.
template <class Queue>
SharedIds RankOn<Queue>::room_for_sampled(const StepPlan& plan) {
  SharedIds out;
  const auto wanted = sampled_rows(plan);
  if (wanted.empty()) return out;
  std::vector<int64_t> counts(index(topology_.cp), 0);
  for (const auto& [item, position] : wanted) {
    out.owners.push_back(owner(state_, plan.items[index(item)], position));
    ++counts[index(out.owners.back())];
  }
  for (const int64_t count : counts) out.bytes.push_back(4 * count);
  out.gathered = {queue_.template scratch<int32_t>(std::ssize(wanted)), wanted.size()};
  out.kept = sampled_.add(queue_, plan.step, static_cast<int32_t>(wanted.size()));
  return out;
}

template <class Queue>
void RankOn<Queue>::gather_sampled(const SharedIds& ids, std::span<const int32_t> own) {
  if (ids.owners.empty()) return;
  ANNULUS_CHECK(4 * std::ssize(own) == ids.bytes[index(cp_rank())], own.size(), " ids of ",
                ids.bytes[index(cp_rank())] / 4);
  groups_.cp->all_gather(queue_, std::as_bytes(own), std::as_writable_bytes(ids.gathered),
                         ids.bytes, {step_.load(), config_.layers, 0, 0, "sampled ids"});
}

// They came by rank, and are kept by row.
template <class Queue>
void RankOn<Queue>::keep_sampled(const SharedIds& ids) {
  if (ids.owners.empty()) return;
  std::vector<int64_t> next(ids.bytes.size());
  std::exclusive_scan(ids.bytes.begin(), ids.bytes.end(), next.begin(), int64_t{0});
  std::vector<int32_t> by_row;
  for (const int32_t rank : ids.owners) {
    by_row.push_back(~static_cast<int32_t>(next[index(rank)] / 4));
    next[index(rank)] += 4;
  }
  kernels::resolve_ids(queue_, ids.kept, queue_.upload(std::span<const int32_t>(by_row)),
                       ids.gathered.data());
}

}  // namespace annulus::parallel::rank_on
