// SPDX-License-Identifier: Apache-2.0
// What a rank answers to a step: logits and tokens of the wanted positions, and the ids that all
// ranks learn. Part of rank_inl.h.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "parallel/rank_on.h"
#include "parallel/sampler.h"

namespace annulus::parallel::rank_on {

// Logits of the wanted rows, gathered over the vocabulary's shards; every rank of the column
// answers alike.
template <class Queue>
void RankOn<Queue>::answer_wanted(const StepPlan& plan, const StepRows& rows, Tensor x,
                                  StepResult& result) {
  const int64_t vocab = config_.vocab, part = vocab / topology_.tp;
  OpId op{step_.load(), config_.layers, 0, 0, "logits"};
  for (size_t begin = 0; begin < rows.wanted.size(); begin += kLogitRows) {
    reached(config_.layers, 0);
    const typename Queue::Mark mark(queue_);
    const kernels::InPhase phase(queue_, Phase::kHead);
    const std::span<const OwnWanted> block =
        std::span(rows.wanted)
            .subspan(begin, std::min(index(kLogitRows), rows.wanted.size() - begin));
    const int64_t n = static_cast<int64_t>(block.size());
    std::vector<int32_t> from;
    for (const OwnWanted& w : block) from.push_back(static_cast<int32_t>(w.row));
    const Tensor picked = matrix(queue_.template scratch<float>(n * x.cols), n, x.cols);
    kernels::gather_rows(queue_, picked, x, queue_.upload(std::span<const int32_t>(from)));
    const Tensor own = matrix(queue_.template scratch<float>(n * part), n, part);
    logits(queue_, config_, *weights_, picked, own);
    std::span<const float> all(own.template row<float>(0), index(n * part));
    if (topology_.tp > 1) {
      const std::span<float> gathered(queue_.template scratch<float>(n * vocab), index(n * vocab));
      const std::vector<int64_t> bytes(index(topology_.tp), n * part * 4);
      groups_.tp->all_gather(queue_, std::as_bytes(all), std::as_writable_bytes(gathered), bytes,
                             op);
      ++op.sequence;
      all = gathered;
    }
    queue_.phases().enter(Phase::kSample);
    std::vector<float> copied;
    if constexpr (!Queue::kHostMemory) {
      copied.resize(all.size());
      queue_.download(std::span(copied), all.data());
      finish();
      all = copied;
    }
    std::vector<WantedResult> answers(block.size());
    const auto answer_row = [&](int64_t r, int) {
      // A row lies in tp pieces, one a rank.
      std::vector<float> joined;
      std::span<const float> row = all.subspan(index(r * part), index(part));
      if (topology_.tp > 1) {
        joined.reserve(index(vocab));
        for (int32_t t = 0; t < topology_.tp; ++t) {
          const auto piece = all.subspan(index((t * n + r) * part), index(part));
          joined.insert(joined.end(), piece.begin(), piece.end());
        }
        row = joined;
      }
      const OwnWanted& w = block[index(r)];
      const SlotShard& slot = state_.slots.at(plan.items[index(w.item)].slot);
      answers[index(r)] = answer(row, slot.sampling, w.item, *w.wanted);
    };
    if constexpr (Queue::kHostMemory) {
      queue_.parallel_for(n, answer_row);
    } else {
      for (int64_t r = 0; r < n; ++r) answer_row(r, 0);
    }
    result.wanted.insert(result.wanted.end(), answers.begin(), answers.end());
  }
}

// All ranks learn every sampled id: the next step's owner of a sequence is another rank.
template <class Queue>
void RankOn<Queue>::share_sampled(const StepPlan& plan, const StepResult& result) {
  const auto wanted = sampled_rows(plan);
  if (wanted.empty()) return;
  std::vector<int32_t> owners, own;
  std::vector<int64_t> bytes(index(topology_.cp), 0);
  for (const auto& [item, position] : wanted) {
    owners.push_back(owner(state_, plan.items[index(item)], position));
    bytes[index(owners.back())] += 4;
  }
  for (size_t row = 0; row < wanted.size(); ++row) {
    if (owners[row] != cp_rank()) continue;
    for (const WantedResult& answer : result.wanted) {
      if (answer.item == wanted[row].first && answer.position == wanted[row].second)
        own.push_back(answer.token);
    }
  }
  const typename Queue::Mark mark(queue_);
  std::vector<int32_t> all(wanted.size());
  const std::span<int32_t> gathered(
      queue_.template scratch<int32_t>(static_cast<int64_t>(all.size())), all.size());
  const OpId op{step_.load(), config_.layers, 0, 0, "sampled ids"};
  groups_.cp->all_gather(queue_, std::as_bytes(queue_.upload(std::span<const int32_t>(own))),
                         std::as_writable_bytes(gathered), bytes, op);
  queue_.download(std::span(all), gathered.data());
  finish();
  std::vector<size_t> next(index(topology_.cp), 0);
  for (int32_t r = 1; r < topology_.cp; ++r) {
    next[index(r)] = next[index(r - 1)] + index(bytes[index(r - 1)] / 4);
  }
  std::vector<int32_t> by_row;
  by_row.reserve(owners.size());
  for (const int32_t rank : owners) by_row.push_back(all[next[index(rank)]++]);
  sampled_.emplace_back(plan.step, std::move(by_row));
  if (sampled_.size() > kSampledSteps) sampled_.pop_front();
}

}  // namespace annulus::parallel::rank_on
