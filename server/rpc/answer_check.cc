// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/answer_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace annulus::server {

using parallel::StepResult;
using parallel::WantedResult;

std::vector<std::vector<ExpectedAnswer>> expected_answers(const parallel::StepPlan& plan,
                                                          const parallel::ShardState& before,
                                                          const parallel::Topology& topology) {
  std::vector<std::vector<ExpectedAnswer>> expected(static_cast<size_t>(topology.world()));
  for (size_t i = 0; i < plan.items.size(); ++i) {
    for (const parallel::Wanted& wanted : plan.items[i].wanted) {
      const int32_t cp_rank = parallel::owner(before, plan.items[i], wanted.position);
      expected[static_cast<size_t>(topology.world_rank(0, cp_rank))].push_back(
          {static_cast<int32_t>(i), wanted});
    }
  }
  return expected;
}

absl::Status check_answer(const std::vector<ExpectedAnswer>& expected, const StepResult& result,
                          int32_t vocab) {
  const auto known = [vocab](int32_t id) { return id >= 0 && id < vocab; };
  if (result.wanted.size() != expected.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "has ", result.wanted.size(), " positions, it was asked for ", expected.size()));
  }
  std::vector<const WantedResult*> answers;
  for (const WantedResult& answer : result.wanted) answers.push_back(&answer);
  std::sort(answers.begin(), answers.end(), [](const WantedResult* a, const WantedResult* b) {
    return std::pair(a->item, a->position) < std::pair(b->item, b->position);
  });
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto& [item, wanted] = expected[i];
    const WantedResult& answer = *answers[i];
    if (answer.item != item || answer.position != wanted.position) {
      return absl::InvalidArgumentError(
          absl::StrCat("lacks position ", wanted.position, " of item ", item));
    }
    if (wanted.sample && !known(answer.token)) {
      return absl::InvalidArgumentError(
          absl::StrCat("samples token ", answer.token, ", the vocabulary has ", vocab));
    }
    if (answer.top.size() > static_cast<size_t>(wanted.top) ||
        !std::all_of(answer.top.begin(), answer.top.end(),
                     [&](const parallel::TopLogprob& top) { return known(top.id); })) {
      return absl::InvalidArgumentError(
          absl::StrCat("has likeliest ids for position ", wanted.position, " that were not asked"));
    }
  }
  return absl::OkStatus();
}

}  // namespace annulus::server
