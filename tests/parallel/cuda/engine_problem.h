// SPDX-License-Identifier: Apache-2.0
// Plans for a small model, and what one rank on a CPU answers to them: what the engine on GPUs must
// answer too, on the emulated ones and on a real one.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cpu/queue.h"
#include "parallel/comm_threads.h"
#include "parallel/rank.h"
#include "tests/parallel/engine_script.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {

// By step; in order of item and position.
using Answers = std::vector<std::vector<WantedResult>>;

using Script = std::vector<StepPlan> (*)(int32_t cp, Variant variant);

struct EngineProblem {
  explicit EngineProblem(kernels::Precision with, Script plans = engine_script)
      : EngineProblem(with, tiny(with), plans) {}
  EngineProblem(kernels::Precision with, const std::string& path, Script plans = engine_script)
      : precision(with), script(plans) {
    checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(path).value());
    ThreadWorld world{Topology{}};
    const auto rank = rank_on(std::make_unique<kernels::CpuQueue>(1, kernels::CpuIsa::kPortable),
                              world.groups(0), {}, 0);
    for (const StepPlan& plan : script(1, Variant::kPassKv)) {
      of_cpu.push_back(rank->apply(plan, soon()).value().wanted);
    }
  }
  static std::string tiny(kernels::Precision with, int32_t tp = 1) {
    annulus::testing::TinyModel model;
    model.dim = 32;
    model.heads = 6;
    model.head_dim = with == kernels::Precision::kF32 ? 8 : 64;  // tensor cores take bf16 and 64
    model.ffn = 64;
    if (tp == 3) {
      model.kv_heads = 3;
      model.ffn = 96;
    }
    std::string path = annulus::testing::scratch_directory() + "/tiny.gguf";
    annulus::testing::write_gguf(model, path);
    return path;
  }
  RankOptions options() const {
    RankOptions out;
    out.precision = precision;
    out.kv_capacity_rows = 1024;
    out.page_tokens = 8;
    return out;
  }
  // The rank on the queue's device.
  template <class Queue>
  std::unique_ptr<Rank> rank_on(std::unique_ptr<Queue> queue, Groups<Queue> groups,
                                Topology topology, int32_t world_rank) const {
    auto weights = std::make_shared<const LlamaWeights<Queue>>(
        load_weights(*queue, *checkpoint, topology.tp_rank(world_rank), topology.tp, precision)
            .value());
    return rank_on(std::move(queue), groups, topology, world_rank, std::move(weights));
  }
  template <class Queue>
  std::unique_ptr<Rank> rank_on(std::unique_ptr<Queue> queue, Groups<Queue> groups,
                                Topology topology, int32_t world_rank,
                                std::shared_ptr<const LlamaWeights<Queue>> weights) const {
    return Rank::create(checkpoint->config(), std::move(weights), std::move(queue), groups,
                        topology, world_rank, 1, options())
        .value();
  }
  static std::chrono::steady_clock::time_point soon() {
    return std::chrono::steady_clock::now() + std::chrono::seconds(60);
  }

  // The plans through one rank, with up to `most` steps under way; its answers go where they
  // belong. `begun` is called after every begin(), which `tells` of steps that end meanwhile.
  template <class Add>
  void run(Rank& rank, Topology topology, int32_t world_rank, Variant variant, const Add& add,
           int32_t most = 1, const std::function<void()>& begun = {}, bool tells = false) const {
    const Rank::Told take = [&](const StepResult& result) {
      add(static_cast<size_t>(result.step), result.wanted);
    };
    for (const StepPlan& whole : script(topology.cp, variant)) {
      ShardState state = rank.state();
      apply_ops(state, whole);
      const StepPlan plan = plan_for_rank(state, whole, topology.cp_rank(world_rank));
      if (rank.begun() == most) take(rank.end());
      const absl::Status status = rank.begin(plan, soon(), tells ? take : Rank::Told());
      ASSERT_TRUE(status.ok()) << status;
      if (begun) begun();
    }
    while (rank.begun() > 0) take(rank.end());
  }

  // In order of item and position.
  static void sort(Answers& answers) {
    for (auto& step : answers)
      std::sort(step.begin(), step.end(), [](const auto& a, const auto& b) {
        return std::tie(a.item, a.position) < std::tie(b.item, b.position);
      });
  }

  // fp32 throughout and sums in another order: the class of the goldens for another layout. bf16:
  // weights, KV and queries are the same bf16 numbers, activations are rounded where the CPU keeps
  // fp32 (2^-9 relative, two layers); from the first token that this changes on, the sequences are
  // others.
  void expect_equal(Answers answers) const {
    const bool exact = precision == kernels::Precision::kF32;
    const double bound = exact ? 5e-4 : 0.05;
    ASSERT_EQ(answers.size(), of_cpu.size());
    sort(answers);
    for (size_t step = 0; step < answers.size(); ++step) {
      const auto& want = of_cpu[step];
      ASSERT_EQ(answers[step].size(), want.size()) << "step " << step;
      for (size_t i = 0; i < want.size(); ++i) {
        const WantedResult& got = answers[step][i];
        EXPECT_EQ(got.item, want[i].item);
        EXPECT_EQ(got.position, want[i].position);
        if (exact) {
          EXPECT_EQ(got.token, want[i].token) << "step " << step << ", item " << got.item;
        }
        EXPECT_NEAR(got.logprob, want[i].logprob, bound);
        EXPECT_NEAR(got.target_logprob, want[i].target_logprob, bound);
        ASSERT_EQ(got.top.size(), want[i].top.size());
        for (size_t t = 0; t < got.top.size(); ++t) {
          if (exact) {
            EXPECT_EQ(got.top[t].id, want[i].top[t].id);
          }
          EXPECT_NEAR(got.top[t].logprob, want[i].top[t].logprob, bound);
        }
        if (got.token != want[i].token) return;
      }
    }
  }

  kernels::Precision precision;
  Script script;
  std::unique_ptr<Checkpoint> checkpoint;
  Answers of_cpu;
};

}  // namespace annulus::parallel
