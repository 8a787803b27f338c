// SPDX-License-Identifier: Apache-2.0
// run_rank_of() on a queue of any device; instantiated by the programs that have one.
#pragma once

#include <chrono>
#include <memory>
#include <utility>

#include "bench/progress_bar.h"
#include "bench/rank_of.h"
#include "parallel/model/checkpoint.h"
#include "parallel/model/weights.h"
#include "parallel/sharding.h"

namespace annulus::bench {

// Decode of one sequence behind `state`, ids as they come: what it samples is nobody's. Without
// profile, with one step under way, with two, and with two that are CUDA graphs.
template <class Queue>
absl::Status run_rank_of_decode(const RankOfOptions& options, parallel::Rank& rank, Queue& queue,
                                int64_t next_step, RankOfReport& report) {
  using namespace parallel;  // NOLINT: everything here is about ranks
  using Clock = std::chrono::steady_clock;
  queue.phases().enable(false);
  queue.measure_gaps();
  int64_t position = options.tokens;
  for (RankOfDecode manner : {RankOfDecode{1, false}, {2, false}, {2, true}}) {
    const int32_t most = std::min(manner.under_way, rank.most_begun());
    queue.use_graphs(manner.graphs);
    // The first meets new shapes, in every place of memory that takes turns.
    const int32_t warm_up = manner.graphs ? 6 * options.topology.cp : 1;
    double gaps_before = 0;
    int64_t replayed_before = 0;
    Clock::time_point start;
    for (int32_t i = -warm_up; i < options.decode_steps; ++i, ++position) {
      if (i == 0) {
        while (rank.begun() > 0) rank.end();
        gaps_before = queue.gaps_us();
        replayed_before = queue.graphs()->counts().replayed;
        start = Clock::now();
      }
      StepPlan plan;
      plan.epoch = 1;
      plan.step = next_step++;
      Item item;
      item.placement = Placement::kDecode;
      item.spans = {{position, 1, 1}};
      item.tokens = {static_cast<int32_t>(position % report.config.vocab)};
      item.wanted = {{.position = position, .sample = true}};
      plan.items = {std::move(item)};
      plan.groups = {{Variant::kGatherQ, {0}}};
      plan.digest = rank.state().digest;
      if (rank.begun() == most) rank.end();
      const StepPlan mine = plan_for_rank(rank.state(), plan, options.cp_rank);
      absl::Status begun = rank.begin(mine, Clock::now() + std::chrono::minutes(1), {});
      if (!begun.ok()) return begun;
    }
    while (rank.begun() > 0) rank.end();
    const double us = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    manner.step_us = us / options.decode_steps;
    manner.gap_us = (queue.gaps_us() - gaps_before) / options.decode_steps;
    manner.replayed = queue.graphs()->counts().replayed - replayed_before;
    report.decode.push_back(manner);
  }
  return absl::OkStatus();
}

// Progress on stderr. Errors: InvalidArgument for a layout that cannot be; throws DeviceError
// (memory).
template <class Queue>
absl::StatusOr<RankOfReport> run_rank_of(const RankOfOptions& options,
                                         std::unique_ptr<Queue> queue) {
  using namespace parallel;  // NOLINT: everything here is about ranks
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const Topology topology = options.topology;
  ConfigOverrides overrides;
  overrides.context = options.tokens;
  auto checkpoint = Checkpoint::open(options.model, overrides);
  if (!checkpoint.ok()) return checkpoint.status();
  RankOfReport report;
  report.config = checkpoint->config();
  Clock::time_point start = Clock::now();
  ProgressBar bar("rank-of");
  auto weights =
      load_weights(*queue, *checkpoint, 0, topology.tp, options.rank.precision,
                   [&](int64_t done, int64_t total) {
                     bar.show(0.1 * static_cast<double>(done) / static_cast<double>(total),
                              "generating weights");
                   });
  if (!weights.ok()) return weights.status();
  report.load_s = seconds_since(start);
  report.weight_bytes = weights->bytes;

  const int32_t world_rank = options.cp_rank * topology.tp;
  AloneComm<Queue> tp(0, topology.tp), cp(options.cp_rank, topology.cp);
  AloneComm<Queue> world(world_rank, topology.world());
  RankOptions rank_options = options.rank;
  rank_options.context = options.tokens;
  if (options.decode_steps > 0 && rank_options.kv_capacity_rows == 0) {  // decoded thrice
    rank_options.kv_capacity_rows =
        default_kv_rows(options.tokens, topology.cp, rank_options.page_tokens) +
        3 * int64_t{options.decode_steps} + 2 + 6 * topology.cp;
  }
  Queue& of_rank = *queue;
  rank_options.profile = true;
  auto rank = Rank::create(
      report.config, std::make_shared<const LlamaWeights<Queue>>(*std::move(weights)),
      std::move(queue), Groups<Queue>{&tp, &cp, &world}, topology, world_rank, 1, rank_options);
  if (!rank.ok()) return rank.status();

  PolicyInput policy;
  policy.shape = attention_shape(report.config, topology, options.rank.precision);
  policy.cp = topology.cp;
  if constexpr (requires { of_rank.cudnn(); }) {  // no chunk's time has a plan's compilation in it
    const AttentionShape& s = policy.shape;
    if (of_rank.cudnn() != nullptr)
      of_rank.cudnn()->prepare(s.heads, {s.dtype, s.kv_heads, s.head_dim, 64});
  }
  start = Clock::now();
  for (int64_t first = 0; first < options.tokens; first += options.chunk_tokens) {
    const int64_t count = std::min(options.chunk_tokens, options.tokens - first);
    bar.show(0.1 + 0.9 * static_cast<double>(first) * static_cast<double>(first) /
                       (static_cast<double>(options.tokens) * static_cast<double>(options.tokens)),
             absl::StrCat(first, " tokens"));
    StepPlan plan;
    plan.epoch = 1;
    plan.step = static_cast<int64_t>(report.steps.size()) + 1;
    Item item;
    item.spans = {{first, static_cast<int32_t>(count), 1}};
    for (int64_t i = 0; i < count; ++i)
      item.tokens.push_back(static_cast<int32_t>((first + i) * 7919 % report.config.vocab));
    if (first + count == options.tokens)
      item.wanted = {{.position = options.tokens - 1, .sample = true}};
    if (first == 0) plan.ops = {Op{}};  // admit slot 0
    plan.items = {std::move(item)};
    plan.groups = {{options.variant, {0}}};
    ShardState state = (*rank)->state();
    plan.digest = state.digest;
    apply_ops(state, plan);
    const StepPlan mine = plan_for_rank(state, plan, options.cp_rank);

    const Traffic tp_before = tp.traffic(), cp_before = cp.traffic();
    const auto result = (*rank)->apply(mine, Clock::now() + std::chrono::minutes(10));
    if (!result.ok()) return result.status();
    RankOfStep step;
    std::copy(result->phase_us.begin(), result->phase_us.end(), step.phase_us.begin());
    step.tp = tp.traffic() - tp_before;
    step.cp = cp.traffic() - cp_before;
    step.formula_bytes = result->groups.at(0).formula_bytes;
    step.demands = step_demands(report.config, topology, policy, {}, {.load = {count, first}});
    report.kv_rows = result->kv_rows;
    report.kv_bytes = result->kv_bytes;
    report.steps.push_back(step);
  }
  report.wall_s = seconds_since(start);
  if constexpr (!Queue::kHostMemory) {
    if (options.decode_steps > 0) {
      const absl::Status decoded = run_rank_of_decode(
          options, **rank, of_rank, static_cast<int64_t>(report.steps.size()) + 1, report);
      if (!decoded.ok()) return decoded;
    }
  }
  return report;
}

}  // namespace annulus::bench
