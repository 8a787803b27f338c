// SPDX-License-Identifier: Apache-2.0
// The whole engine on emulated GPUs, joined by a scripted NCCL: the same plans as one rank on a CPU
// gives the same answers, for every layout and variant.
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "kernels/cuda/matrix.h"
#include "parallel/comm_nccl.h"
#include "tests/kernels/cuda/scripted_cudnn.h"
#include "tests/parallel/cuda/emulated_ranks.h"
#include "tests/parallel/decode_script.h"

namespace annulus::parallel {
namespace {

using kernels::Precision;

using Case = std::tuple<Topology, Variant, Precision>;
class CudaEngine : public ::testing::TestWithParam<Case> {};

thread_local int64_t last_waits = -1;  // of a rank

TEST_P(CudaEngine, AnswersAsOneRankOnACpu) {
  const auto [topology, variant, precision] = GetParam();
  const EngineProblem problem(precision, EngineProblem::tiny(precision, topology.tp));
  problem.expect_equal(answers_of(problem, topology, variant));
}

// Inputs of F8 layers have a scale a row, so that CP does not change them. The CPU multiplies the
// same weights by inputs that are not rounded to F8: 2^-4 relative an element in the worst case,
// averaged over 64 and more of a product in one layer of three: within the bound of bf16, too.
TEST(CudaEngineF8, AnswersAsOneRankWhateverCp) {
  EngineProblem problem(Precision::kDefault,
                        "synthetic:layers=3,dim=64,heads=4,kv_heads=2,head_dim=64,ffn=128,vocab=96,"
                        "context=512-FP8");
  Answers one = answers_of(problem, {1, 1}, Variant::kPassKv);
  problem.expect_equal(one);
  const LayerTensors& middle = problem.checkpoint->tensors().layers[1];
  EXPECT_EQ(kernels::format_on_gpu({&middle.down, 1}, Precision::kDefault),
            kernels::WeightFormat::kF8E4M3);
  EngineProblem::sort(one);
  problem.of_cpu = one;
  for (const Variant variant : {Variant::kPassKv, Variant::kPassQ})
    problem.expect_equal(answers_of(problem, {1, 2}, variant));
  problem.expect_equal(answers_of(problem, {1, 2}, Variant::kPassKv, {.sent = true}));
}

// Over TP the inputs of `down` are slices with scales of their own, in the one layer of three that
// is F8: another rounding of the same numbers, as far from them as that of one rank (2^-4 of an
// element at most). So the distance is that of two such answers: each is within the bound of bf16
// of a CPU, which rounds no inputs, and within the same bound of the other.
TEST(CudaEngineF8, TpIsAsNearAsOneRank) {
  EngineProblem problem(Precision::kDefault,
                        "synthetic:layers=3,dim=64,heads=4,kv_heads=2,head_dim=64,ffn=128,vocab=96,"
                        "context=512-FP8");
  Answers one = answers_of(problem, {1, 1}, Variant::kPassKv);
  Answers two = answers_of(problem, {2, 1}, Variant::kPassKv);
  problem.expect_equal(two);
  EngineProblem::sort(one);
  EngineProblem::sort(two);
  problem.of_cpu = one;
  problem.expect_equal(two);
  EXPECT_NE(two, one) << "the scales of slices are those of rows";
  // CP changes nothing here either: exact to sums in another order.
  problem.of_cpu = two;
  problem.expect_equal(answers_of(problem, {2, 2}, Variant::kPassKv));
}

// The published mix of formats, inputs cut off at a bound that all of them reach. Where that is
// written changes nothing, what it is does.
TEST(CudaEngineF8, TheBoundOfInputsComesFromTensorsOrFromTheConfig) {
  annulus::testing::TinyModel model;
  model.layers = 3;
  model.head_dim = 64;
  model.tied = false;
  model.matrices = kernels::WeightFormat::kF8E4M3;
  model.embedding = kernels::WeightFormat::kBF16;
  model.f8_as_published = true;
  const auto answers = [&](float bound, bool in_tensors) {
    model.f8_bound = bound;
    model.f8_bound_in_tensors = in_tensors;
    model.f8_bound_in_config = !in_tensors;
    const std::string folder = annulus::testing::scratch_directory();
    annulus::testing::write_folder(model, folder);
    return answers_of(EngineProblem(Precision::kDefault, folder), {1, 1}, Variant::kPassKv);
  };
  const Answers by_tensors = answers(0.25f, true);
  EXPECT_EQ(answers(0.25f, false), by_tensors);
  EXPECT_NE(answers(1200, false), by_tensors);
}

// Attention of prompts by cuDNN, whose script interprets its graphs; decode stays with our kernels.
// 16 query heads a KV head, so that a rank's few tokens are many rows.
TEST(CudaEngineByCudnn, AnswersAsOneRankOnACpu) {
  const EngineProblem problem(Precision::kDefault,
                              "synthetic:layers=2,dim=64,heads=16,kv_heads=1,head_dim=64,ffn=128,"
                              "vocab=96,context=512");
  const Manner by_cudnn = {
      .at_first = [](CudaQueue& queue) { queue.use(annulus::testing::scripted_cudnn()); }};
  const int before = annulus::testing::cudnn_script().runs;
  problem.expect_equal(answers_of(problem, {1, 2}, Variant::kPassKv, by_cudnn));
  EXPECT_GT(annulus::testing::cudnn_script().runs, before);
}

// Plans are compiled before anything is timed, let alone served, for the shape that a rank has:
// with no engine for one, a rank of two says so then.
TEST(CudaEngineByCudnn, ARankThatMeasuresCompilesItsPlans) {
  annulus::testing::CudnnScript& script = annulus::testing::cudnn_script();
  const EngineProblem problem(Precision::kDefault,
                              "synthetic:layers=1,dim=64,heads=4,kv_heads=2,head_dim=64,ffn=64,"
                              "vocab=96,context=64");
  script.engines = 0;
  script.runs = 0;
  on_worlds({2, 1}, {}, [&](int32_t me, NcclWorld& world, auto& rank) {
    auto queue = std::make_unique<CudaQueue>(0);
    queue->use(annulus::testing::scripted_cudnn());
    rank = problem.rank_on(std::move(queue), world.groups(), {2, 1}, me);
    std::string error = "none";
    try {
      (void)rank->measure();
    } catch (const kernels::DeviceError& thrown) {
      error = thrown.what();
    }
    EXPECT_NE(error.find("attention of 2 over 1 heads of 64, 1024 queries, 8192 keys"),
              std::string::npos)
        << error;
  });
  script.engines = 1;
  EXPECT_EQ(script.runs, 0);
}

TEST(CudaWeights, ThatWereSentAnswerAsThoseThatWereRead) {
  const EngineProblem fp32(Precision::kF32), bf16(Precision::kDefault);
  fp32.expect_equal(answers_of(fp32, {2, 3}, Variant::kPassKv, {.sent = true}));
  bf16.expect_equal(answers_of(bf16, {1, 2}, Variant::kPassQ, {.sent = true}));
}

// What is drawn is drawn from logits that differ by 1e-4 at most, with the same numbers.
TEST(CudaEngineSampled, DrawsAsOneRankOnACpu) {
  const EngineProblem problem(Precision::kF32, sampled_script);
  const EngineProblem greedy(Precision::kF32);
  EXPECT_NE(problem.of_cpu, greedy.of_cpu) << "no draw has left the best";
  for (const Topology topology : {Topology{1, 1}, Topology{2, 1}, Topology{1, 3}, Topology{2, 2}})
    problem.expect_equal(answers_of(problem, topology, Variant::kGatherQ));
}

// Decode names ids that only the device knows: the host waits once a step, for answers, when all of
// it is enqueued.
TEST(CudaEngineSampled, AStepWaitsOnceForTheGpu) {
  const EngineProblem problem(Precision::kF32, sampled_script);
  std::mutex mutex;                           // guards waits
  std::map<size_t, std::set<int64_t>> waits;  // by step, of any rank
  for (const Topology topology : {Topology{1, 1}, Topology{2, 1}, Topology{1, 3}, Topology{2, 2}}) {
    const auto count = [&](size_t step) {
      thread_local int64_t before = 0;
      const int64_t now = cuda_emulation::host_waits();
      const std::lock_guard lock(mutex);
      waits[step].insert(now - std::exchange(before, now));
    };
    (void)answers_of(problem, topology, Variant::kGatherQ, {.ended = count});
  }
  waits.erase(0);  // weights were loaded before it
  EXPECT_EQ(waits.size(), problem.of_cpu.size() - 1);
  for (const auto& [step, of_ranks] : waits)
    EXPECT_EQ(of_ranks, std::set<int64_t>{1}) << "step " << step;
}

// Sequences in turn: each takes the pages that the one before gave up in the same plan, and their
// prompts are of other lengths, so that uploads of two steps lie elsewhere.
std::vector<StepPlan> turnover_script(int32_t cp, Variant variant) {
  std::vector<StepPlan> plans;
  ShardState state = testing::state_of(cp);
  for (int64_t k = 0; k < 9; ++k) {
    const bool prompts = k % 3 == 0;
    const int32_t slot = 1 + static_cast<int32_t>(k / 3 % 2);
    const auto length = static_cast<int32_t>(30 - 9 * (k / 3));
    std::vector<Op> ops;
    if (prompts && k > 0) ops.push_back(testing::op_of(Op::Kind::kRelease, 3 - slot));
    if (prompts) ops.push_back(testing::admit(slot, static_cast<int32_t>(k) % cp));
    Item item = testing::item_of(slot, 0, length);
    for (int32_t& token : item.tokens) token = static_cast<int32_t>((token + 31 * k) % 250);
    if (!prompts) {
      item = {};
      item.slot = slot;
      item.placement = Placement::kDecode;
      item.spans = {{length + k % 3 - 1, 1, 1}};
      item.sampled = {k - 1, 0};
    }
    item.wanted = {{item.spans.front().last(), true, 7, 3, true}};
    StepPlan plan = testing::plan_of(state, std::move(ops), {std::move(item)});
    plan.epoch = 1;
    plan.step = k;
    for (Group& group : plan.groups) group.variant = variant;
    state = advance(std::move(state), plan);
    plans.push_back(std::move(plan));
  }
  return plans;
}

// With two steps under way the second is enqueued without a wait for the first, and what they
// answer is what they answer one by one. Streams run as late as they may: only what finish() waits
// for.
TEST(CudaEngineOverlap, AStepIsBegunWhileTheOneBeforeIsUnderWay) {
  const auto ended = [](size_t) { last_waits = cuda_emulation::host_waits(); };
  const auto begun = [] {
    const int64_t now = cuda_emulation::host_waits();
    if (last_waits >= 0) {
      EXPECT_EQ(now, last_waits);
    }
    last_waits = now;
  };
  const Manner overlap = {.most = 2, .ended = ended, .begun = begun};
  const EngineProblem forks(Precision::kF32, sampled_script);
  for (const Topology topology : {Topology{1, 1}, Topology{2, 2}})
    forks.expect_equal(answers_of(forks, topology, Variant::kGatherQ, overlap));
  const EngineProblem turnover(Precision::kF32, turnover_script);
  for (const Variant variant : {Variant::kPassKv, Variant::kPassQ})
    turnover.expect_equal(answers_of(turnover, {1, 3}, variant, overlap));
  turnover.expect_equal(answers_of(turnover, {2, 1}, Variant::kPassKv, overlap));
}

// Asking whether a step has ended makes the emulated GPU run it: all end while the next is
// enqueued, but the last.
TEST(CudaEngineOverlap, AStepThatEndsMeanwhileIsTold) {
  const EngineProblem problem(Precision::kF32, turnover_script);
  std::vector<std::string> log;
  const Manner manner = {
      .most = 2,
      .tells = true,
      .ended = [&](size_t step) { log.push_back("end " + std::to_string(step)); },
      .begun = [&] { log.push_back("begun"); }};
  problem.expect_equal(answers_of(problem, {1, 1}, Variant::kGatherQ, manner));
  ASSERT_EQ(log.size(), 18u);
  EXPECT_EQ(log[0], "begun");
  for (size_t step = 0; step < 9; ++step) {
    EXPECT_EQ(log[2 * step + 1], "end " + std::to_string(step));
    if (step < 8) {
      EXPECT_EQ(log[2 * step + 2], "begun");
    }
  }
}

// The device has its next step when it is done with one.
TEST(CudaEngineOverlap, TheDeviceIsNeverWithoutWork) {
  const EngineProblem problem(Precision::kF32, turnover_script);
  for (const int32_t most : {1, 2}) {
    double gaps_us = 0;
    (void)answers_of(problem, {1, 1}, Variant::kPassKv,
                     {.most = most,
                      .at_first = [](CudaQueue& queue) { queue.measure_gaps(); },
                      .at_last = [&](CudaQueue& queue) { gaps_us = queue.gaps_us(); }});
    EXPECT_EQ(gaps_us, most == 1 ? 8e3 : 0) << most;
  }
}

// Rank 0 of two has two steps under way, and rank 1 does not come.
std::string end_without_peer(std::chrono::milliseconds first_deadline,
                             const std::function<void(NcclWorld&)>& meanwhile) {
  const EngineProblem problem(Precision::kF32);
  const Topology topology{1, 2};
  std::string error = "none";
  on_worlds(topology, {}, [&](int32_t me, NcclWorld& world, auto& rank) {
    rank = problem.rank_on(std::make_unique<CudaQueue>(0), world.groups(), topology, me);
    if (me == 0) {
      const std::vector<StepPlan> plans = engine_script(2, Variant::kPassKv);
      for (size_t step = 0; step < 2; ++step) {
        ShardState state = rank->state();
        apply_ops(state, plans[step]);
        const auto deadline = std::chrono::steady_clock::now() +
                              (step == 0 ? first_deadline : std::chrono::milliseconds(60000));
        EXPECT_TRUE(rank->begin(plan_for_rank(state, plans[step], 0), deadline, {}).ok());
      }
      std::jthread control([&] { meanwhile(world); });
      try {
        (void)rank->end();
      } catch (const kernels::DeviceError& thrown) {
        error = thrown.what();
      }
    }
  });
  return error;
}

TEST(CudaEngineOverlap, AStepPassesItsOwnDeadline) {
  const auto began = std::chrono::steady_clock::now();
  const std::string error = end_without_peer(std::chrono::milliseconds(1000), [](NcclWorld&) {});
  EXPECT_NE(error.find("has not finished by the deadline"), std::string::npos) << error;
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(30));
}

TEST(CudaEngineOverlap, AnAbortEndsAllThatIsUnderWay) {
  const std::string error =
      end_without_peer(std::chrono::milliseconds(60000), [](NcclWorld& world) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        world.abort("rank 1 is lost");
      });
  EXPECT_NE(error.find("rank 1 is lost"), std::string::npos) << error;
}

// Sums of up to four rows in symmetric memory, larger ones as without it: each that there is goes
// one of both ways.
TEST(CudaEngineSymmetric, SumsOfDecodeGoThereAndThoseOfPromptsDoNot) {
  using annulus::testing::nccl_script;
  using annulus::testing::take_nccl_sums;
  constexpr size_t kBound = 4 * 32 * sizeof(float);
  Manner manner{.most = 2};
  manner.options = {.connect_limit = std::chrono::seconds(120),
                    .symmetric_bytes = kBound,
                    .symmetric_limit = std::chrono::seconds(60)};
  const EngineProblem sampled(Precision::kF32, sampled_script);
  const EngineProblem by_graphs(Precision::kF32, decode_script);
  for (const auto& [topology, problem] :
       {std::pair<Topology, const EngineProblem&>{{2, 1}, sampled},
        {{2, 2}, sampled},
        {{2, 1}, by_graphs}}) {
    (void)take_nccl_sums();
    problem.expect_equal(answers_of(problem, topology, Variant::kGatherQ, manner));
    const auto without = take_nccl_sums();
    nccl_script().version = kNcclSymmetricOldest;
    problem.expect_equal(answers_of(problem, topology, Variant::kGatherQ, manner));
    nccl_script().version = 22809;
    auto with = take_nccl_sums();
    EXPECT_EQ(nccl_script().live_memory, 0);
    EXPECT_EQ(with.plain[sizeof(float)], topology.world());  // does everybody have it?
    with.plain.erase(sizeof(float));
    EXPECT_TRUE(without.symmetric.empty());
    ASSERT_FALSE(with.symmetric.empty());
    ASSERT_FALSE(with.plain.empty());
    EXPECT_LE(with.symmetric.rbegin()->first, kBound);
    EXPECT_GT(with.plain.begin()->first, kBound);
    with.symmetric.merge(with.plain);
    EXPECT_EQ(with.symmetric, without.plain);
  }
}

// Prompts of several tiles of keys, so that attention goes by TMA and wgmma: a long one beside a
// short one, more of it behind what is cached, decode.
std::vector<StepPlan> long_prompts(int32_t cp, Variant variant) {
  std::vector<StepPlan> plans;
  auto add = [&, append = adder(plans, cp, variant)](std::vector<Op> ops,
                                                     std::vector<Item> items) mutable {
    for (Item& item : items) {
      for (int32_t& token : item.tokens) token %= 250;  // of a vocabulary of 288
    }
    append(std::move(ops), std::move(items));
  };
  Item first = testing::item_of(1, 0, 333), other = testing::item_of(2, 0, 45);
  first.wanted = {{200, false, 9, 0}, {332, true, -1, 2, true}};
  other.wanted = {{44, true, 5, 2, true}};
  add({testing::admit(1), testing::admit(2, 1 % cp)}, {first, other});
  Item more = testing::item_of(1, 333, 150);
  more.wanted = {{333, false, 3, 0}, {482, true, 7, 3, true}};
  add({}, {more});
  return plans;
}

class CudaEngineLong : public ::testing::TestWithParam<Variant> {};
TEST_P(CudaEngineLong, AnswersAsOneRankOnACpu) {
  const EngineProblem problem(Precision::kDefault, long_prompts);
  problem.expect_equal(answers_of(problem, {1, 2}, GetParam()));
}
INSTANTIATE_TEST_SUITE_P(Bf16, CudaEngineLong, ::testing::Values(Variant::kPassKv, Variant::kPassQ),
                         [](const ::testing::TestParamInfo<Variant>& variant) {
                           return variant.param == Variant::kPassKv ? "pass_kv" : "pass_q";
                         });

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  const auto& [topology, variant, precision] = info.param;
  std::string text = "Tp" + std::to_string(topology.tp) + "Cp" + std::to_string(topology.cp) + "_" +
                     name(variant) + (precision == Precision::kF32 ? "" : "_bf16");
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, CudaEngine,
    ::testing::Combine(::testing::Values(Topology{1, 1}, Topology{2, 1}, Topology{3, 1},
                                         Topology{1, 3}, Topology{2, 2}, Topology{3, 2}),
                       ::testing::Values(Variant::kPassKv, Variant::kPassQ, Variant::kGatherQ),
                       ::testing::Values(Precision::kF32)),
    case_name);
INSTANTIATE_TEST_SUITE_P(Bf16, CudaEngine,
                         ::testing::Combine(::testing::Values(Topology{1, 2}),
                                            ::testing::Values(Variant::kPassKv, Variant::kPassQ),
                                            ::testing::Values(Precision::kDefault)),
                         case_name);

}  // namespace
}  // namespace annulus::parallel
