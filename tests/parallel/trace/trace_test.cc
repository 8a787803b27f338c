// SPDX-License-Identifier: Apache-2.0
// The engine itself, every rank of it, on devices without memory: what all ranks ask of their
// communicators fits together and cannot deadlock, for CP up to 16 and TP up to 8.
#include "tests/parallel/trace/trace.h"

#include <gtest/gtest.h>

#include <memory>

#include "parallel/model/llama_inl.h"
#include "parallel/rank_inl.h"
#include "tests/parallel/engine_script.h"
#include "tests/parallel/sharding/plans.h"

namespace annulus::parallel {
namespace {

using kernels::VirtualQueue;

LlamaConfig small_config() {
  LlamaConfig config;
  config.name = "virtual";
  config.layers = 2;
  config.dim = 64;
  config.heads = 16;
  config.kv_heads = 8;
  config.head_dim = 4;
  config.ffn = 96;
  config.vocab = 128;
  config.context = config.trained_context = 4096;
  config.rms_eps = 1e-5;
  config.rope_theta = 1e4;
  return config;
}

std::shared_ptr<const LlamaWeights<VirtualQueue>> weights_of(const LlamaConfig& config,
                                                             int32_t tp) {
  using Matrix = VirtualQueue::Matrix;
  const int64_t d = config.head_dim, heads = config.heads / tp, kv_heads = config.kv_heads / tp;
  VirtualQueue queue;
  kernels::Mirror<VirtualQueue, float> norm(std::vector<float>(static_cast<size_t>(config.dim)));
  norm.sync(queue);
  LlamaWeights<VirtualQueue> weights;
  weights.output_norm = norm;
  for (int32_t l = 0; l < config.layers; ++l) {
    weights.layers.push_back(
        {norm, norm, Matrix((heads + 2 * kv_heads) * d, config.dim), Matrix(config.dim, heads * d),
         Matrix(2 * config.ffn / tp, config.dim), Matrix(config.dim, config.ffn / tp)});
  }
  weights.head = Matrix(config.vocab / tp, config.dim);
  return std::make_shared<const LlamaWeights<VirtualQueue>>(std::move(weights));
}

// Every rank's calls over the plans of a script.
struct Traced {
  std::vector<std::unique_ptr<TraceGroup>> groups;
  std::vector<Trace> traces;
};

Traced trace(Topology topology, const std::vector<StepPlan>& script,
             int64_t workspace_limit_bytes = RankOptions{}.workspace_limit_bytes) {
  Traced out;
  // One object a group, whichever rank asks.
  const auto group = [&](GroupId id, int32_t of) -> const TraceGroup& {
    std::vector<int32_t> members = group_members(topology, id, of);
    for (const auto& known : out.groups) {
      if (known->id == id && known->members == members) return *known;
    }
    out.groups.push_back(std::make_unique<TraceGroup>(TraceGroup{id, std::move(members)}));
    return *out.groups.back();
  };
  out.traces.resize(static_cast<size_t>(topology.world()));
  const LlamaConfig config = small_config();
  const auto weights = weights_of(config, topology.tp);
  RankOptions options;
  options.kv_capacity_rows = 4096;
  options.page_tokens = 8;
  options.workspace_limit_bytes = workspace_limit_bytes;
  for (int32_t me = 0; me < topology.world(); ++me) {
    Trace& calls = out.traces[static_cast<size_t>(me)];
    TraceComm of_tp(group(GroupId::kTp, me), topology.tp_rank(me), calls);
    TraceComm of_cp(group(GroupId::kCp, me), topology.cp_rank(me), calls);
    TraceComm of_world(group(GroupId::kWorld, me), me, calls);
    const auto rank =
        Rank::create(config, weights, std::make_unique<VirtualQueue>(),
                     Groups<VirtualQueue>{&of_tp, &of_cp, &of_world}, topology, me, 1, options)
            .value();
    for (const StepPlan& whole : script) {
      ShardState state = rank->state();
      apply_ops(state, whole);
      const absl::StatusOr<StepResult> result =
          rank->apply(plan_for_rank(state, whole, topology.cp_rank(me)),
                      std::chrono::steady_clock::now() + std::chrono::seconds(60));
      EXPECT_TRUE(result.ok()) << result.status();
      if (!result.ok()) return out;
    }
  }
  return out;
}

// Sequences of random lengths that come, grow by chunks or decode, are forked, cut and released;
// each step's items are dealt to the three variants at random.
std::vector<StepPlan> random_script(int32_t cp, uint64_t seed) {
  testing::Random random(seed);
  std::vector<StepPlan> plans;
  ShardState state = testing::state_of(cp);
  int32_t next_slot = 0;
  for (int64_t step = 0; step < 6; ++step) {
    std::vector<Op> ops;
    std::vector<Item> items;
    ShardState before = state;
    std::vector<int32_t> slots;
    for (const auto& [slot, shard] : state.slots) slots.push_back(slot);
    for (const int32_t slot : slots) {
      if (random.in(0, 5) == 0) {
        ops.push_back(testing::op_of(Op::Kind::kRelease, slot));
      } else if (random.in(0, 4) == 0) {
        ops.push_back(
            testing::op_of(Op::Kind::kTruncate, slot, random.in(0, state.slots.at(slot).length)));
      } else if (random.in(0, 4) == 0) {
        ops.push_back(testing::op_of(Op::Kind::kFork, next_slot++,
                                     random.in(0, state.slots.at(slot).length), slot));
      } else if (random.in(0, 4) == 0) {
        ops.push_back(testing::rebase(slot, random.in32(0, cp - 1)));
      }
    }
    for (int64_t i = random.in(step == 0 ? 1 : 0, 2); i > 0; --i) {
      ops.push_back(testing::admit(next_slot++, random.in32(0, cp - 1)));
    }
    StepPlan only_ops;
    only_ops.ops = ops;
    apply_ops(before, only_ops);
    for (const auto& [slot, shard] : before.slots) {
      if (random.in(0, 4) == 0) continue;
      const bool decodes = shard.length > 0 && random.coin();
      // From fewer tokens than ranks to many chunks of each.
      const int32_t count = decodes ? 1 : random.in32(1, random.coin() ? cp : 9 * cp);
      Item item = testing::item_of(slot, shard.length, count,
                                   decodes ? Placement::kDecode : Placement::kPrompt);
      for (int32_t& token : item.tokens) token %= 128;
      if (random.coin()) item.wanted = {{shard.length + random.in(0, count - 1), true, -1, 0}};
      items.push_back(std::move(item));
    }
    StepPlan plan = testing::plan_of(state, std::move(ops), std::move(items));
    plan.epoch = 1;
    plan.step = step;
    plan.groups.clear();
    for (const Variant variant : {Variant::kPassQ, Variant::kPassKv, Variant::kGatherQ}) {
      plan.groups.push_back({variant, {}});
    }
    for (size_t i = 0; i < plan.items.size(); ++i) {
      plan.groups[static_cast<size_t>(random.in(0, 2))].items.push_back(static_cast<int32_t>(i));
    }
    std::erase_if(plan.groups, [](const Group& group) { return group.items.empty(); });
    state = advance(std::move(state), plan);
    plans.push_back(std::move(plan));
  }
  return plans;
}

class CommunicatorTrace : public ::testing::TestWithParam<Topology> {};

TEST_P(CommunicatorTrace, CallsOfAllRanksMeetInEveryVariant) {
  for (const Variant variant : {Variant::kPassKv, Variant::kPassQ, Variant::kGatherQ}) {
    const Traced traced = trace(GetParam(), engine_script(GetParam().cp, variant));
    EXPECT_EQ(check_traces(traced.traces), "") << name(variant);
    EXPECT_FALSE(traced.traces[0].calls.empty());  // a copy of the sampled ids at the least
  }
}

TEST_P(CommunicatorTrace, CallsOfAllRanksMeetInMixedSteps) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const std::vector<StepPlan> script = random_script(GetParam().cp, seed);
    ASSERT_EQ(check_traces(trace(GetParam(), script).traces), "") << "seed " << seed;
    // Pass-Q and gather-Q in blocks of one row: in the later ones some ranks have none.
    ASSERT_EQ(check_traces(trace(GetParam(), script, 1).traces), "") << "blocks, seed " << seed;
  }
}

std::vector<Topology> topologies() {
  std::vector<Topology> out;
  for (int32_t cp = 1; cp <= 16; ++cp) {
    for (const int32_t tp : {1, 2, 4, 8}) out.push_back({tp, cp});
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Layouts, CommunicatorTrace, ::testing::ValuesIn(topologies()),
                         [](const auto& layout) {
                           return "Tp" + std::to_string(layout.param.tp) + "Cp" +
                                  std::to_string(layout.param.cp);
                         });

// The checker can fail: each of these would hang or corrupt ranks.
class TraceFault : public ::testing::Test {
 protected:
  TraceFault() : traced(trace({2, 3}, engine_script(3, Variant::kPassQ))) {}
  std::string check() const { return check_traces(traced.traces); }
  size_t find(const std::vector<TraceCall>& trace, TraceCall::Kind kind) {
    for (size_t i = 0; i < trace.size(); ++i) {
      if (trace[i].kind == kind) return i;
    }
    ADD_FAILURE() << "no such call";
    return 0;
  }
  Traced traced;
};

TEST_F(TraceFault, NoneIsNone) {
  EXPECT_EQ(check(), "");
}

TEST_F(TraceFault, AMissingCall) {
  std::vector<TraceCall>& trace = traced.traces[3].calls;
  for (const auto kind : {TraceCall::Kind::kAllReduce, TraceCall::Kind::kAllGather,
                          TraceCall::Kind::kAllToAll, TraceCall::Kind::kExchange}) {
    const std::vector<TraceCall> whole = trace;
    trace.erase(trace.begin() + static_cast<int64_t>(find(trace, kind)));
    EXPECT_NE(check(), "");
    trace = whole;
  }
}

TEST_F(TraceFault, AMissingLastCall) {
  traced.traces[5].calls.pop_back();
  EXPECT_NE(check().find("rank 5 has ended"), std::string::npos) << check();
}

// One rank that turns two groups round is met by the others one after the other; with a second one,
// of another row and column, each waits for the next in a circle.
TEST_F(TraceFault, TwoGroupsInAnotherOrder) {
  const auto turn_round = [&](std::vector<TraceCall>& trace) {
    size_t at = find(trace, TraceCall::Kind::kAllToAll);
    ASSERT_EQ(trace[at + 1].kind, TraceCall::Kind::kAllReduce);
    std::swap(trace[at], trace[at + 1]);
  };
  turn_round(traced.traces[2].calls);
  EXPECT_EQ(check(), "");
  turn_round(traced.traces[1].calls);
  EXPECT_NE(check().find("waits in"), std::string::npos) << check();
}

TEST_F(TraceFault, AHopTheOtherWayRound) {
  std::vector<TraceCall>& calls = traced.traces[1].calls;
  TraceCall& call = calls[find(calls, TraceCall::Kind::kExchange)];
  std::swap(call.to, call.from);
  EXPECT_NE(check(), "");
}

TEST_F(TraceFault, SizesThatDiffer) {
  for (const auto kind : {TraceCall::Kind::kAllReduce, TraceCall::Kind::kAllGather,
                          TraceCall::Kind::kAllToAll, TraceCall::Kind::kExchange}) {
    std::vector<TraceCall>& calls = traced.traces[4].calls;
    TraceCall& call = calls[find(calls, kind)];
    call.send.back() += 4;
    EXPECT_NE(check().find("sizes"), std::string::npos) << check();
    call.send.back() -= 4;
  }
}

TEST_F(TraceFault, AHopThatNobodyAwaits) {
  traced.traces[0].in_flight = 1;
  EXPECT_EQ(check(), "rank 0 leaves a hop in flight");
}

TEST_F(TraceFault, AnIdUsedTwice) {
  for (Trace& trace : traced.traces) {
    for (TraceCall& call : trace.calls) call.op.sequence = 0;
  }
  EXPECT_NE(check().find("used this id before"), std::string::npos) << check();
}

}  // namespace
}  // namespace annulus::parallel
