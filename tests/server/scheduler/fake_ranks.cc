// SPDX-License-Identifier: Apache-2.0
#include "tests/server/scheduler/fake_ranks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <span>

#include "server/kv_budget.h"

namespace annulus::testing {

using parallel::Item;
using parallel::Op;

namespace {

uint64_t mix(uint64_t h, uint64_t value) {
  h ^= value + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
  h *= 0xbf58476d1ce4e5b9ull;
  return h ^ (h >> 31);
}

int32_t sample(std::span<const int32_t> before, uint64_t seed, int32_t vocab) {
  uint64_t h = mix(1, seed);
  for (int32_t id : before) h = mix(h, static_cast<uint64_t>(id));
  return static_cast<int32_t>(h % static_cast<uint64_t>(vocab));
}

}  // namespace

parallel::PolicyInput test_policy(int32_t cp) {
  parallel::PolicyInput policy;
  policy.shape = {
      .heads = 9, .kv_heads = 3, .head_dim = 64, .layers = 30, .dtype = kernels::DType::kBF16};
  policy.cp = cp;
  return policy;
}

std::vector<int32_t> answer_alone(const AloneRequest& request, int32_t vocab) {
  std::vector<int32_t> all = request.prompt, answer;
  while (static_cast<int64_t>(answer.size()) < request.max_tokens) {
    const int32_t id = answer.size() < request.forced.size() ? request.forced[answer.size()]
                                                             : sample(all, request.seed, vocab);
    answer.push_back(id);
    all.push_back(id);
    if (std::count(request.stop_ids.begin(), request.stop_ids.end(), id) > 0) break;
  }
  return answer;
}

FakeRanks::FakeRanks(int32_t cp, int32_t vocab, int64_t capacity_rows, int32_t page_tokens)
    : vocab_(vocab), capacity_rows_(capacity_rows), page_tokens_(page_tokens) {
  state_.cp = cp;
}

void FakeRanks::run(const server::PlannedStep& planned) {
  const parallel::StepPlan& plan = planned.plan;
  const absl::Status valid = parallel::validate(state_, plan);
  ASSERT_TRUE(valid.ok()) << "step " << plan.step << ": " << valid;
  parallel::ShardState before = state_;
  parallel::apply_ops(before, plan);
  ASSERT_TRUE(before == planned.before);
  ASSERT_FALSE(plan.items.empty() && plan.ops.empty());
  EXPECT_EQ(plan.groups.empty(), plan.items.empty());
  EXPECT_GT(planned.expected_us + (plan.items.empty() ? 1 : 0), 0);

  std::set<int32_t> released;
  for (const Op& op : plan.ops) {
    // A slot is free in the plans after the one that releases it.
    if (op.kind == Op::Kind::kRelease) released.insert(op.slot);
    ASSERT_FALSE(op.kind == Op::Kind::kAdmit && released.contains(op.slot)) << "slot " << op.slot;
    switch (op.kind) {
      case Op::Kind::kAdmit: slots_[op.slot] = {{}, op.sampling.seed}; break;
      case Op::Kind::kSampling: slots_.at(op.slot).seed = op.sampling.seed; break;
      case Op::Kind::kTruncate:
        slots_.at(op.slot).tokens.resize(static_cast<size_t>(op.length));
        break;
      case Op::Kind::kRelease: slots_.erase(op.slot); break;
      case Op::Kind::kRebase: break;
      case Op::Kind::kFork: FAIL() << "nothing forks";
    }
  }
  std::vector<int32_t>& row_ids = sampled_[plan.step];
  std::vector<parallel::WantedResult>& answers = answers_[plan.step];
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const Item& item = plan.items[i];
    Slot& slot = slots_.at(item.slot);
    ASSERT_EQ(item.spans.front().first, static_cast<int64_t>(slot.tokens.size()));
    if (item.sampled.step >= 0) {
      // A reference reaches no further back than the plans that are out.
      ASSERT_GE(item.sampled.step,
                plan.step - static_cast<int64_t>(server::Scheduler::kPlansAhead));
      slot.tokens.push_back(
          sampled_.at(item.sampled.step).at(static_cast<size_t>(item.sampled.row)));
    } else {
      slot.tokens.insert(slot.tokens.end(), item.tokens.begin(), item.tokens.end());
    }
    computed_ += item.count();
    for (const parallel::Wanted& wanted : item.wanted) {
      parallel::WantedResult result;
      result.item = static_cast<int32_t>(i);
      result.position = wanted.position;
      const std::span<const int32_t> prefix(slot.tokens.data(),
                                            static_cast<size_t>(wanted.position + 1));
      if (wanted.sample) {
        result.token = sample(prefix, slot.seed, vocab_);
        result.logprob = -0.5f;
        row_ids.push_back(result.token);
      }
      // Recognisable: the target itself.
      if (wanted.target >= 0) result.target_logprob = -static_cast<float>(wanted.target);
      for (int32_t t = 0; t < wanted.top; ++t) result.top.push_back({t, -static_cast<float>(t)});
      answers.push_back(std::move(result));
    }
  }
  std::reverse(answers.begin(), answers.end());  // ranks answer in no order
  state_ = parallel::advance(std::move(state_), plan);

  std::vector<int64_t> rows(static_cast<size_t>(state_.cp), 0);
  for (const auto& [id, slot] : state_.slots) {
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r] += server::round_to_pages(parallel::count(slot.ranks[r]), page_tokens_);
    }
  }
  const int64_t most = *std::max_element(rows.begin(), rows.end());
  ASSERT_LE(most, capacity_rows_) << "step " << plan.step;
  largest_rows_ = std::max(largest_rows_, most);
}

std::vector<parallel::WantedResult> FakeRanks::take_answers(int64_t step) {
  std::vector<parallel::WantedResult> answers = std::move(answers_.at(step));
  answers_.erase(step);
  return answers;
}

}  // namespace annulus::testing
