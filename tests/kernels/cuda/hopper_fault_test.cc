// SPDX-License-Identifier: Apache-2.0
// The emulated GPU notices what a real one answers with wrong numbers, now and then, or with
// silence.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/hopper_kernel.h"

namespace annulus::kernels {
namespace {

class EmulatedHopper : public CudaTest {
 protected:
  TwoProducts run(Fault fault) {
    std::mt19937 random(1);
    std::vector<bf16> x[3];
    for (auto& matrix : x) {
      matrix.resize(128 * 128);
      for (bf16& e : matrix) e = to_bf16(static_cast<float>(random() % 3) - 1.0f);
    }
    x[0].resize(64 * 128);
    return two_products(queue(), x[0], x[1], x[2], 0, fault);
  }
  static bool any_nan(const std::vector<float>& values) {
    return std::any_of(values.begin(), values.end(), [](float x) { return std::isnan(x); });
  }
};
using EmulatedHopperDeath = EmulatedHopper;

TEST_F(EmulatedHopper, WhatIsNotThereYetIsNoNumber) {
  for (const Fault fault : {Fault::kNoProxyFence, Fault::kFenceBeforeWrite, Fault::kNoWait}) {
    EXPECT_TRUE(any_nan(run(fault).scores)) << static_cast<int>(fault);
  }
  int early = 0;  // unless it has landed meanwhile
  for (int i = 0; i < 20; ++i) early += any_nan(run(Fault::kNoMbarrierWait).scores);
  EXPECT_GT(early, 0);
}

TEST_F(EmulatedHopper, AWrongLayoutGivesWrongNumbers) {
  const TwoProducts right = run(Fault::kNone);
  EXPECT_FALSE(any_nan(right.scores) || any_nan(right.output));
  EXPECT_NE(run(Fault::kNoSwizzle).scores, right.scores);
  EXPECT_NE(run(Fault::kOtherStride).scores, right.scores);
  const TwoProducts leading = run(Fault::kOtherLeading);
  EXPECT_EQ(leading.scores, right.scores);
  EXPECT_NE(leading.output, right.output);
}

// Products run at some moment before the wait: most of the time after the next statement.
TEST_F(EmulatedHopper, RegistersOfARunningProductBelongToIt) {
  const TwoProducts right = run(Fault::kNone);
  int wrong = 0;
  for (int i = 0; i < 10; ++i) wrong += run(Fault::kEarlyWrite).output != right.output;
  EXPECT_GT(wrong, 0);
}

TEST_F(EmulatedHopperDeath, MisuseEndsWithASentence) {
  const auto dies = [&](Fault fault, const std::string& sentence) {
    EXPECT_DEATH(run(fault), sentence) << static_cast<int>(fault);
  };
  dies(Fault::kNoBarrierFence, "TMA does not see its mbarrier");
  dies(Fault::kNoMapFence, "a tensor map before its fence");
  dies(Fault::kTwoArrivals, "arrives too often at the mbarrier at .*phase 0");
  dies(Fault::kNoWgmmaFence, "without wgmma.fence");
  dies(Fault::kAccumulatorWrite, "accumulators are written while wgmma has them");
}

TEST_F(EmulatedHopperDeath, WaitingForEverEndsWithWhatIsAwaited) {
  const auto dies = [&](Fault fault, const std::string& sentence) {
    EXPECT_DEATH(run(fault), "wait for ever: .*" + sentence) << static_cast<int>(fault);
  };
  dies(Fault::kMoreBytes, "phase 0, which misses 0 of 1 arrivals and 16 bytes");
  dies(Fault::kFewerBytes, "phase 0, which misses 0 of 1 arrivals and -16 bytes");
  dies(Fault::kNextPhase, "phase 1, which misses 1 of 1 arrivals and 0 bytes");
  dies(Fault::kHalfWarpgroup, "products that not all of its warpgroup call");
  dies(Fault::kLonelyBarrier, "barrier 1, where 96 of 128 threads are");
}

}  // namespace
}  // namespace annulus::kernels
