// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_workload.h"

#include <algorithm>
#include <deque>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "server/scheduler.h"

namespace annulus::bench {
namespace {

using parallel::Placement;
using parallel::WantedResult;

constexpr int32_t kToken = 1;
constexpr int64_t kMostTokens = int64_t{1} << 26;  // their ids are held, a few times

std::vector<WantedResult> answers(const parallel::StepPlan& plan) {
  std::vector<WantedResult> results;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    for (const parallel::Wanted& wanted : plan.items[i].wanted) {
      WantedResult result;
      result.item = static_cast<int32_t>(i);
      result.position = wanted.position;
      if (wanted.sample) result.token = kToken;
      results.push_back(std::move(result));
    }
  }
  return results;
}

// Plans until nothing is left, two out at a time as in a running engine.
void drain(server::Scheduler& scheduler, bool timed, std::vector<ScriptStep>& script) {
  std::deque<std::pair<int64_t, std::vector<WantedResult>>> out;
  while (true) {
    while (std::optional<server::PlannedStep> next = scheduler.next()) {
      out.emplace_back(next->plan.step, answers(next->plan));
      ScriptStep step;
      step.timed = timed && !next->plan.items.empty();
      step.decode = true;
      for (const parallel::Item& item : next->plan.items) {
        step.new_tokens += item.count();
        step.decode &= item.placement == Placement::kDecode;
      }
      step.plan = std::move(next->plan);
      step.before = std::move(next->before);
      script.push_back(std::move(step));
    }
    if (out.empty()) break;
    scheduler.complete(out.front().first, std::move(out.front().second));
    out.pop_front();
  }
  scheduler.take_events();
}

}  // namespace

int64_t kv_capacity_rows(int32_t cp, const Workload& work) {
  const int64_t tokens = work.cached + work.prompt + work.answer;
  return work.batch * (tokens / cp + tokens / (4 * cp) + 512);
}

absl::StatusOr<std::vector<ScriptStep>> schedule(const parallel::LlamaConfig& config,
                                                 const parallel::PolicyInput& policy,
                                                 const Workload& work) {
  if (work.cached < 0 || work.answer < 1 || work.batch < 1 ||
      work.prompt < (work.cached > 0 ? 2 : 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a workload has answer and batch of at least 1 and a prompt of at least 1 token, 2 behind "
        "cached ones; not cached ",
        work.cached, ", prompt ", work.prompt, ", answer ", work.answer, ", batch ", work.batch));
  }
  const int64_t most = std::max({work.cached, work.prompt, int64_t{work.answer}});
  if (most > kMostTokens || work.batch > kMostTokens / (work.cached + work.prompt + work.answer)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "batch ", work.batch, " of ", work.cached, " cached, ", work.prompt, " new and ",
        work.answer, " answer tokens is more than the ", kMostTokens, " that are simulated"));
  }
  const int64_t context = work.cached + work.prompt + work.answer + 2;
  server::SchedulerLimits limits;
  limits.context = context;
  limits.vocab = config.vocab;
  limits.max_running = limits.max_queue = limits.max_sessions = work.batch + 1;
  limits.max_step_us = work.max_step_us;
  limits.variant = work.variant;
  server::Scheduler scheduler(limits);
  scheduler.begin_epoch(kScriptEpoch, policy, kv_capacity_rows(policy.cp, work));

  std::vector<ScriptStep> script;
  const auto submit_all = [&](int64_t prompt, int32_t answer, bool append) -> absl::Status {
    for (int32_t b = 0; b < work.batch; ++b) {
      server::GenerateRequest request;
      request.prompt.assign(static_cast<size_t>(prompt), kToken);
      request.session = absl::StrCat("s", b);
      request.append = append;
      request.max_tokens = answer;
      request.ignore_eos = true;
      if (const auto id = scheduler.submit(std::move(request)); !id.ok()) return id.status();
    }
    return absl::OkStatus();
  };
  if (work.cached > 0) {
    if (absl::Status s = submit_all(work.cached, 1, false); !s.ok()) return s;
    drain(scheduler, false, script);
  }
  // The last token of a session's answer has no KV yet and is the first of the new ones.
  const int64_t more = work.cached > 0 ? work.prompt - 1 : work.prompt;
  if (absl::Status s = submit_all(more, work.answer, work.cached > 0); !s.ok()) return s;
  drain(scheduler, true, script);
  return script;
}

}  // namespace annulus::bench
