// SPDX-License-Identifier: Apache-2.0
// The whole engine on emulated GPUs, joined by a scripted NCCL: the same plans as one rank on a CPU
// gives the same answers, for every layout and variant.
#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cpu/queue.h"
#include "kernels/cuda/matrix.h"
#include "parallel/comm_nccl.h"
#include "parallel/comm_threads.h"
#include "parallel/rank.h"
#include "tests/parallel/cuda/scripted_nccl.h"
#include "tests/parallel/sharding/plans.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using kernels::CpuQueue;
using kernels::CudaQueue;
using testing::admit;
using testing::item_of;
using testing::op_of;

// Two sequences: prefill in two chunks beside decode, decode from what was sampled, then a fork, a
// truncation over a page's edge, and more prefill behind what is cached.
std::vector<StepPlan> script(int32_t cp, Variant variant) {
  std::vector<StepPlan> plans;
  ShardState state = testing::state_of(cp);
  const auto add = [&](std::vector<Op> ops, std::vector<Item> items) {
    StepPlan plan = testing::plan_of(state, std::move(ops), std::move(items));
    plan.epoch = 1;
    plan.step = static_cast<int64_t>(plans.size());
    for (Group& group : plan.groups) group.variant = variant;
    state = advance(std::move(state), plan);
    plans.push_back(std::move(plan));
  };
  const auto decode = [](int32_t slot, int64_t position, SampledRef from) {
    Item item;
    item.slot = slot;
    item.placement = Placement::kDecode;
    item.spans = {{position, 1, 1}};
    item.sampled = from;
    item.wanted = {{position, true, 7, 3}};
    return item;
  };
  Item prompt = item_of(1, 0, 13), other = item_of(2, 0, 7);
  other.wanted = {{6, true, 5, 2}};
  add({admit(1), admit(2, 1 % cp)}, {prompt, other});
  prompt = item_of(1, 13, 9);
  prompt.wanted = {{13, false, 3, 0}, {21, true, -1, 4}};
  add({}, {prompt, decode(2, 7, {0, 0})});
  add({}, {decode(1, 22, {1, 0}), decode(2, 8, {1, 1})});
  Item more = item_of(3, 20, 11), again = item_of(2, 5, 3);
  more.wanted = {{25, false, 9, 0}, {30, true, -1, 2}};
  again.wanted = {{7, true, -1, 0}};
  add({op_of(Op::Kind::kFork, 3, 20, 1), op_of(Op::Kind::kTruncate, 2, 5)}, {more, again});
  add({op_of(Op::Kind::kRelease, 1)}, {decode(3, 31, {3, 0}), decode(2, 8, {3, 1})});
  return plans;
}

using Answers = std::vector<std::vector<WantedResult>>;  // by step; in order of item and position

class CudaEngine : public ::testing::TestWithParam<std::tuple<Topology, Variant>> {
 protected:
  static void SetUpTestSuite() {
    const std::string path = annulus::testing::scratch_directory() + "/tiny.gguf";
    annulus::testing::TinyModel model;
    model.dim = 32;
    model.heads = 6;
    model.head_dim = 8;
    model.ffn = 64;
    annulus::testing::write_gguf(model, path);
    checkpoint_ = std::make_unique<Checkpoint>(Checkpoint::open(path).value());
    answers_of_cpu_ = on_cpu();
  }
  static RankOptions options() {
    RankOptions options;
    options.precision = kernels::Precision::kF32;
    options.kv_capacity_rows = 512;
    options.page_tokens = 8;
    return options;
  }
  static std::chrono::steady_clock::time_point soon() {
    return std::chrono::steady_clock::now() + std::chrono::seconds(60);
  }

  static Answers on_cpu() {
    ThreadWorld world{Topology{}};
    auto queue = std::make_unique<CpuQueue>(1);
    auto weights = std::make_shared<const LlamaWeights<CpuQueue>>(
        load_weights(*queue, *checkpoint_, 0, 1, kernels::Precision::kF32).value());
    const auto rank = Rank::create(checkpoint_->config(), weights, std::move(queue),
                                   world.groups(0), {}, 0, 1, options())
                          .value();
    Answers answers;
    for (const StepPlan& plan : script(1, Variant::kPassKv)) {
      answers.push_back(rank->apply(plan, soon()).value().wanted);
    }
    return answers;
  }

  static std::unique_ptr<Checkpoint> checkpoint_;
  static Answers answers_of_cpu_;
};
std::unique_ptr<Checkpoint> CudaEngine::checkpoint_;
Answers CudaEngine::answers_of_cpu_;

TEST_P(CudaEngine, AnswersAsOneRankOnACpu) {
  const auto [topology, variant] = GetParam();
  const int32_t ranks = topology.world();
  std::vector<std::string> addresses(static_cast<size_t>(ranks));
  std::barrier all_created(ranks);
  std::mutex mutex;  // guards answers
  Answers answers(answers_of_cpu_.size());
  annulus::testing::run_ranks(ranks, [&, topology = topology, variant = variant](int32_t me) {
    auto queue = std::make_unique<CudaQueue>(0);
    auto world = NcclWorld::create(annulus::testing::scripted_nccl(), topology, me, 1).value();
    addresses[static_cast<size_t>(me)] = world->address();
    all_created.arrive_and_wait();
    ASSERT_TRUE(world->connect(addresses).ok());
    auto weights = std::make_shared<const LlamaWeights<CudaQueue>>(
        load_weights(*queue, *checkpoint_, topology.tp_rank(me), topology.tp,
                     kernels::Precision::kF32)
            .value());
    const auto rank = Rank::create(checkpoint_->config(), weights, std::move(queue),
                                   world->groups(), topology, me, 1, options())
                          .value();
    for (const StepPlan& whole : script(topology.cp, variant)) {
      ShardState state = rank->state();
      apply_ops(state, whole);
      const StepPlan plan = plan_for_rank(state, whole, topology.cp_rank(me));
      const absl::StatusOr<StepResult> result = rank->apply(plan, soon());
      ASSERT_TRUE(result.ok()) << result.status();
      const std::lock_guard lock(mutex);
      auto& step = answers[static_cast<size_t>(plan.step)];
      step.insert(step.end(), result->wanted.begin(), result->wanted.end());
    }
    all_created.arrive_and_wait();  // nobody leaves while others may need it
  });
  for (size_t step = 0; step < answers.size(); ++step) {
    std::sort(answers[step].begin(), answers[step].end(), [](const auto& a, const auto& b) {
      return std::tie(a.item, a.position) < std::tie(b.item, b.position);
    });
    const auto& want = answers_of_cpu_[step];
    ASSERT_EQ(answers[step].size(), want.size()) << "step " << step;
    for (size_t i = 0; i < want.size(); ++i) {
      const WantedResult& got = answers[step][i];
      EXPECT_EQ(got.item, want[i].item);
      EXPECT_EQ(got.position, want[i].position);
      EXPECT_EQ(got.token, want[i].token) << "step " << step << ", item " << got.item;
      // fp32 throughout, sums in another order: the class of the goldens for another layout.
      EXPECT_NEAR(got.logprob, want[i].logprob, 5e-4);
      EXPECT_NEAR(got.target_logprob, want[i].target_logprob, 5e-4);
      ASSERT_EQ(got.top.size(), want[i].top.size());
      for (size_t t = 0; t < got.top.size(); ++t) {
        EXPECT_EQ(got.top[t].id, want[i].top[t].id);
        EXPECT_NEAR(got.top[t].logprob, want[i].top[t].logprob, 5e-4);
      }
    }
  }
  EXPECT_EQ(annulus::testing::nccl_script().live, 0);
}

std::string layout_name(const ::testing::TestParamInfo<std::tuple<Topology, Variant>>& info) {
  const auto& [topology, variant] = info.param;
  std::string text =
      "Tp" + std::to_string(topology.tp) + "Cp" + std::to_string(topology.cp) + "_" + name(variant);
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, CudaEngine,
    ::testing::Combine(::testing::Values(Topology{1, 1}, Topology{2, 1}, Topology{1, 2},
                                         Topology{1, 3}, Topology{2, 2}),
                       ::testing::Values(Variant::kPassKv, Variant::kPassQ, Variant::kGatherQ)),
    layout_name);

}  // namespace
}  // namespace annulus::parallel
