// SPDX-License-Identifier: Apache-2.0
// The engine on a real GPU, one rank: the same plans as one rank on a CPU gives the same answers,
// by our own matmul and by cuBLASLt.
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/matrix.h"
#include "parallel/comm_nccl.h"
#include "tests/parallel/cuda/engine_problem.h"
#include "tests/parallel/decode_script.h"

namespace annulus::parallel {
namespace {

using kernels::CudaQueue;
using kernels::Precision;

class EngineOnAGpu : public ::testing::TestWithParam<std::tuple<Precision, bool, Script, int32_t>> {
};

TEST_P(EngineOnAGpu, AnswersAsOneRankOnACpu) {
  const auto [precision, cublas, script, most] = GetParam();
  if (const auto device = kernels::find_cuda_device(0); !device.ok()) {
    GTEST_SKIP() << device.status();
  }
  const auto library = kernels::load_cublaslt();
  if (cublas && !library.ok()) GTEST_SKIP() << library.status();
  const EngineProblem problem(precision, script);
  static constexpr NcclApi kNone = {};  // a group of one calls nothing
  std::unique_ptr<Rank> rank;
  auto queue = std::make_unique<CudaQueue>(0);
  const std::shared_ptr<kernels::CudaGraphs> graphs = queue->graphs();
  if (cublas) queue->use(**library);
  const auto world = NcclWorld::create(kNone, {}, 0, 1).value();
  ASSERT_TRUE(world->connect(std::vector{world->address()}).ok());
  rank = problem.rank_on(std::move(queue), world->groups(), {}, 0);
  rank->measure();
  Answers answers(problem.of_cpu.size());
  problem.run(
      *rank, {}, 0, Variant::kPassKv,
      [&](size_t step, const auto& wanted) { answers[step] = wanted; }, most);
  problem.expect_equal(answers);
  if (script == decode_script) {
    EXPECT_GE(graphs->counts().replayed, 8);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Precisions, EngineOnAGpu,
    ::testing::Combine(::testing::Values(Precision::kF32, Precision::kDefault), ::testing::Bool(),
                       ::testing::Values(engine_script, sampled_script, decode_script),
                       ::testing::Values(1, 2)));

}  // namespace
}  // namespace annulus::parallel
