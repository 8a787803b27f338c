// SPDX-License-Identifier: Apache-2.0
// What attention by cuDNN asks of the library, seen from a scripted one.
#include <gtest/gtest.h>

#include "kernels/core/check.h"
#include "tests/kernels/cuda/attention_on_device.h"
#include "tests/kernels/cuda/scripted_cudnn.h"

namespace annulus::kernels {
namespace {

using testing::cudnn_script;
using testing::scripted_cudnn;

class CudnnScripted : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    cudnn_script().plans = cudnn_script().runs = 0;
    cudnn_script().engines = 1;
    cudnn_script().refused = 0;
    queue().use(scripted_cudnn());
  }
  // One sequence of as many new tokens and keys, no key being hidden.
  void attend_to(int32_t queries, int32_t keys) {
    const Problem p({2, 1, 64}, DType::kBF16, {{range(keys, queries), range(0, keys)}});
    OnDevice problem(queue(), p, true);
    problem.attend_to(problem.segments, OwnedPartial(p));
  }
};

// Lengths do not matter: a plan a size of block, compiled once.
TEST_F(CudnnScripted, PlansAreFour) {
  attend_to(40, 30);
  EXPECT_EQ(cudnn_script().plans, 1);
  attend_to(90, 1000);
  attend_to(256, 77);
  EXPECT_EQ(cudnn_script().plans, 1);
  attend_to(40, 5000);
  attend_to(600, 5000);
  attend_to(600, 10);
  attend_to(1030, 1030);
  EXPECT_EQ(cudnn_script().plans, 4);
}

TEST_F(CudnnScripted, PlansThatArePreparedAreAll) {
  EXPECT_EQ(queue().cudnn()->prepare(2, {DType::kF32, 1, 64, 64}), 0);
  EXPECT_EQ(queue().cudnn()->prepare(2, {DType::kBF16, 1, 80, 64}), 0);
  EXPECT_EQ(cudnn_script().plans, 0) << "not for what tensor cores do not take";
  EXPECT_EQ(queue().cudnn()->prepare(2, {DType::kBF16, 1, 64, 64}), 1024);
  EXPECT_EQ(cudnn_script().plans, 4);
  EXPECT_EQ(cudnn_script().runs, 0);
  attend_to(40, 30);
  attend_to(600, 10);
  attend_to(1030, 5000);
  EXPECT_EQ(cudnn_script().plans, 4);
}

TEST_F(CudnnScripted, FewRowsAreNotAskedFor) {
  attend_to(32, 100);  // of 2 heads: 64 rows
  EXPECT_EQ(cudnn_script().runs, 0);
  attend_to(33, 100);
  EXPECT_EQ(cudnn_script().runs, 1);
}

TEST_F(CudnnScripted, NoEngineIsSaid) {
  const auto error = [&] {
    try {
      attend_to(40, 30);
    } catch (const DeviceError& thrown) {
      return std::string(thrown.what());
    }
    return std::string("attention without an engine");
  };
  const auto says = [](const std::string& line, const char* words) {
    EXPECT_NE(line.find(words), std::string::npos) << line;
    EXPECT_NE(line.find("--gpu-attention own"), std::string::npos) << line;
  };
  cudnn_script().engines = 0;
  says(error(), "has no engine");
  cudnn_script().engines = cudnn_script().refused = 3;
  says(error(), "a plan: status 3000, scripted (the last of 3 engines");
  EXPECT_EQ(cudnn_script().runs, 0);
  cudnn_script().engines = 1;
  cudnn_script().refused = 0;
  attend_to(40, 30);
  EXPECT_EQ(cudnn_script().runs, 1);
}

// The heuristics' first choice cannot be compiled, the second can.
TEST_F(CudnnScripted, TheNextEngineTakesThePlaceOfOneThatIsRefused) {
  const int before = cudnn_script().live;
  cudnn_script().engines = 3;
  attend_to(40, 30);
  EXPECT_EQ(cudnn_script().ran, 0);
  const int with_the_first = cudnn_script().live - before;
  cudnn_script().refused = 1;
  attend_to(40, 5000);  // another size, another plan
  EXPECT_EQ(cudnn_script().ran, 1);
  EXPECT_EQ(cudnn_script().plans, 2);
  EXPECT_EQ(cudnn_script().live - before, 2 * with_the_first) << "refused plans stay";
}

TEST(CudnnScriptedQueue, EverythingIsGivenBack) {
  const int before = cudnn_script().live;
  {
    CudaQueue queue(0);
    queue.use(scripted_cudnn());
    const Problem p({2, 1, 64}, DType::kBF16, {prefill(40, 30)});
    OnDevice problem(queue, p, true);
    problem.attend_to(problem.segments, OwnedPartial(p));
    EXPECT_GT(cudnn_script().live, before);
  }
  EXPECT_EQ(cudnn_script().live, before);
}

// However long a sequence is, a call takes the scratch of one block.
TEST_F(CudnnScripted, ScratchIsBounded) {
  attend_to(40, 9000);
  const int64_t once = queue().scratch_peak_bytes();
  attend_to(300, 20000);
  EXPECT_EQ(queue().scratch_peak_bytes(), once);
}

}  // namespace
}  // namespace annulus::kernels
