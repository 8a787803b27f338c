// SPDX-License-Identifier: Apache-2.0
// Decode as CUDA graphs, on emulated GPUs: what is replayed answers as what is enqueued, and most
// steps are replayed.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/parallel/cuda/emulated_ranks.h"
#include "tests/parallel/decode_script.h"

namespace annulus::parallel {
namespace {

using kernels::CudaGraphs;
using kernels::Precision;

struct Case {
  Topology topology;
  Variant variant;
  Precision precision;
  int32_t most;  // steps under way
};
class CudaDecode : public ::testing::TestWithParam<Case> {};

// A shape is enqueued once and captured once for each of the two places of pinned memory, by owner
// of the sequences; then it comes again, until attention's grids have outgrown what they were
// rounded up to.
TEST_P(CudaDecode, AnswerAsOneRankOnACpu) {
  const auto& [topology, variant, precision, most] = GetParam();
  const EngineProblem problem(precision, decode_script);
  std::atomic<int64_t> replayed{0}, captured{0};
  Manner manner = {.most = most};
  manner.at_last = [&](CudaQueue& queue) {
    const CudaGraphs::Counts counts = queue.graphs()->counts();
    replayed += counts.replayed;
    captured += counts.captured;
  };
  problem.expect_equal(answers_of(problem, topology, variant, manner));
  const int64_t steps = int64_t{kTogether + kAlone} * topology.world();
  const bool payloads_grow = variant == Variant::kPassKv && topology.cp > 1;
  if (payloads_grow) {  // every step is new
    EXPECT_EQ(replayed + captured, 0);
    return;
  }
  const int64_t shapes = 2 * topology.cp;  // two batches, whose owners go round
  EXPECT_GE(replayed + captured, steps - shapes * topology.world());
  EXPECT_GE(replayed, steps / 2) << captured << " captured";
}

// The abort waits for the graph that is being captured, whose thread must not wait for the abort.
TEST(CudaDecodeGraphs, AnAbortDuringACaptureEndsIt) {
  const Topology topology{2, 1};
  on_worlds(topology, {}, [&](int32_t me, NcclWorld& world, auto&) {
    CudaQueue queue(0);
    const CudaQueue::Mark mark(queue);
    const std::span<float> data(queue.scratch<float>(8), 8);
    auto& group = *world.groups().tp;
    std::jthread control;
    const auto body = [&] {
      for (int32_t i = 0; i < 3; ++i) {
        group.all_reduce(queue, data, {1, i, 0, 0, "sum"});
        if (me == 1 || !queue.captures() || control.joinable()) continue;
        control = std::jthread([&] { world.abort("rank 1 is lost"); });
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    };
    queue.repeat(1, body);
    queue.finish(EngineProblem::soon());
    if (me == 0) {
      std::string error = "none";
      try {
        queue.repeat(1, body);
      } catch (const kernels::DeviceError& thrown) {
        error = thrown.what();
      }
      EXPECT_NE(error.find("rank 1 is lost"), std::string::npos) << error;
      control.join();
    }
  });
}

std::string case_name(const ::testing::TestParamInfo<Case>& which) {
  const Case& c = which.param;
  std::string text = "Tp" + std::to_string(c.topology.tp) + "Cp" + std::to_string(c.topology.cp) +
                     "_" + name(c.variant) + (c.precision == Precision::kF32 ? "" : "_bf16");
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

// Rank 1 leaves when both decode by graphs, and rank 0 has launched one that waits for it: the
// abort ends it, for no graph holds the communicator then (the scripted NCCL insists).
TEST(CudaDecodeGraphs, AnAbortEndsThoseThatWait) {
  const EngineProblem problem(Precision::kF32, decode_script);
  const Topology topology{1, 2};
  on_worlds(topology, {}, [&](int32_t me, NcclWorld& world, auto& rank) {
    auto owned = std::make_unique<CudaQueue>(0);
    const CudaQueue& queue = *owned;
    rank = problem.rank_on(std::move(owned), world.groups(), topology, me);
    const std::vector<StepPlan> plans = decode_script(2, Variant::kGatherQ);
    const size_t last = me == 0 ? 18 : 16;
    std::string error = "none";
    for (size_t step = 0; step < last; ++step) {
      ShardState state = rank->state();
      apply_ops(state, plans[step]);
      ASSERT_TRUE(rank->begin(plan_for_rank(state, plans[step], me), problem.soon(), {}).ok());
      if (step < 16) (void)rank->end();
    }
    EXPECT_GT(queue.graphs()->counts().replayed, 5);
    if (me == 0) {
      std::jthread control([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        world.abort("rank 1 is lost");
      });
      try {
        (void)rank->end();
      } catch (const kernels::DeviceError& thrown) {
        error = thrown.what();
      }
      EXPECT_NE(error.find("rank 1 is lost"), std::string::npos) << error;
      control.join();
      EXPECT_EQ(queue.graphs()->counts().kept, 0);
    }
  });
}

// A CP group of one, which dawdles while work is logged, inside what is timed as attention.
class Dawdling final : public Communicator<CudaQueue> {
 public:
  static constexpr std::chrono::milliseconds kPause{250};

  Dawdling(Communicator<CudaQueue>& group, const CudaQueue& queue) : group_(group), queue_(queue) {}
  int32_t rank() const override { return 0; }
  int32_t size() const override { return 1; }
  void all_reduce(CudaQueue& queue, std::span<float> data, const OpId& op) override {
    group_.all_reduce(queue, data, op);
  }
  void all_gather(CudaQueue& queue, ConstBytes own, Bytes out, std::span<const int64_t> bytes,
                  const OpId& op) override {
    group_.all_gather(queue, own, out, bytes, op);
  }
  void all_to_all(CudaQueue& queue, std::span<const ConstBytes> send,
                  std::span<const Bytes> receive, const OpId& op) override {
    group_.all_to_all(queue, send, receive, op);
  }
  Transfer exchange(CudaQueue& queue, ConstBytes send, int32_t to, Bytes receive, int32_t from,
                    const OpId& op) override {
    return group_.exchange(queue, send, to, receive, from, op);
  }
  void await(CudaQueue& queue, Transfer transfer) override {
    group_.await(queue, std::move(transfer));
  }
  void progress() override { group_.progress(); }
  void set_deadline(std::chrono::steady_clock::time_point at) override { group_.set_deadline(at); }
  void abort(const std::string& why) override { group_.abort(why); }
  int64_t bytes_sent() const override {
    if (queue_.records() && !queue_.captures()) std::this_thread::sleep_for(kPause);
    return 0;
  }
  double waited_us() const override { return 0; }

 private:
  Communicator<CudaQueue>& group_;
  const CudaQueue& queue_;
};

TEST(CudaDecodeGraphs, TimesOfAStepThatIsCapturedCountOnce) {
  const EngineProblem problem(Precision::kF32, decode_script);
  on_worlds({1, 1}, {}, [&](int32_t me, NcclWorld& world, auto&) {
    auto owned = std::make_unique<CudaQueue>(0);
    CudaQueue& queue = *owned;
    Groups<CudaQueue> groups = world.groups();
    Dawdling cp(*groups.cp, queue);
    groups.cp = &cp;
    const auto own_rank = problem.rank_on(std::move(owned), groups, {1, 1}, me);
    int64_t captured = 0;
    for (const StepPlan& whole : decode_script(1, Variant::kPassKv)) {
      if (captured == 2) break;
      ShardState state = own_rank->state();
      apply_ops(state, whole);
      const auto result = own_rank->apply(plan_for_rank(state, whole, 0), problem.soon());
      ASSERT_TRUE(result.ok()) << result.status();
      const int64_t before = std::exchange(captured, queue.graphs()->counts().captured);
      if (captured == before) continue;
      for (const GroupReport& group : result->groups) {
        EXPECT_GT(group.attend_us, 0);
        EXPECT_LT(group.attend_us, std::chrono::microseconds(Dawdling::kPause).count());
      }
    }
    EXPECT_EQ(captured, 2);
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, CudaDecode,
                         ::testing::Values(Case{{1, 1}, Variant::kPassKv, Precision::kF32, 2},
                                           Case{{1, 1}, Variant::kPassKv, Precision::kDefault, 2},
                                           Case{{2, 1}, Variant::kPassKv, Precision::kF32, 2},
                                           Case{{1, 3}, Variant::kGatherQ, Precision::kF32, 2},
                                           Case{{1, 3}, Variant::kPassQ, Precision::kF32, 1},
                                           Case{{1, 2}, Variant::kPassKv, Precision::kF32, 2},
                                           Case{{1, 2}, Variant::kGatherQ, Precision::kDefault, 2},
                                           Case{{2, 2}, Variant::kPassQ, Precision::kF32, 2}),
                         case_name);

}  // namespace
}  // namespace annulus::parallel
