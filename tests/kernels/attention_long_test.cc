// SPDX-License-Identifier: Apache-2.0
// Attention over 2^20 keys against double precision, on every instruction set that this machine
// runs.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/long_problem.h"

namespace annulus::kernels {
namespace {

class LongAttention : public testing::TestWithParam<Target> {
 protected:
  void check(const LongProblem& p, Tolerance tolerance, const std::string& what) {
    const float scale = 1 / std::sqrt(static_cast<float>(p.shape().head_dim));
    CpuQueue queue(2, GetParam().isa);
    OwnedPartial got(p.q_count(), p.shape());
    attend(queue, p.q(), p.segments(), p.format, scale, got.view());
    ReferencePartial want(p.q_count(), p.shape().heads, p.shape().head_dim);
    reference_attend(p.q(), p.segments(), p.format, static_cast<double>(scale), want);
    expect_near(got, want, tolerance, what);
  }
};

// Few rows (the decode kernel: one row, a group of four heads) and tiled (nine rows; 16 columns).
constexpr Shape kFew = {4, 1, 32}, kTiled = {1, 1, 16};

// Normal scores and values: the tolerance of short sequences holds, because errors do not grow
// with the number of keys. An output is a mean of a million values and is about 0.002, so 1e-6 of
// the largest |v| is still 0.3 % of it.
TEST_P(LongAttention, AMillionRandomKeys) {
  const auto [isa, dtype] = GetParam();
  for (const auto& [shape, rows] : {std::pair(kFew, 1), std::pair(kTiled, 9)}) {
    LongProblem p(shape, dtype, rows, 1 << 20);
    p.fill_random();
    check(p, tolerance(isa, dtype), std::to_string(rows) + " rows");
  }
}

// The worst case for sums: equal terms of one sign, whose roundings add up. The 64 products of a
// tile and the tiles of a split (512 at most: a million keys are 32 splits or more) are added one
// after the other, each with an error of 2^-24 of the sum at most; then 128 splits at most are
// merged. A sum carried from key to key would err by up to 8192 or 32768 times 2^-24. vdpbf16ps
// rounds P besides, the same for all keys of a split.
TEST_P(LongAttention, AMillionEqualKeys) {
  const auto [isa, dtype] = GetParam();
  const bool rounds_p = isa >= CpuIsa::kAvx512Bf16 && dtype == DType::kBF16;
  for (const auto& [shape, rows] : {std::pair(kFew, 1), std::pair(kTiled, 9)}) {
    LongProblem p(shape, dtype, rows, 1 << 20);
    p.fill_equal();
    const double sums = (64 + 512 + 2 * 128) * 0x1p-24;
    check(p, {sums + (rounds_p ? 0x1p-9 : 0), sums}, std::to_string(rows) + " rows");
  }
}

// Items enough without cutting the keys: a sum of 1,024 tiles, whose error is that of lse itself.
TEST_P(LongAttention, ManyEqualKeysInOnePass) {
  const auto [isa, dtype] = GetParam();
  const bool rounds_p = isa >= CpuIsa::kAvx512Bf16 && dtype == DType::kBF16;
  constexpr int32_t kKeys = 1 << 16;
  LongProblem p({32, 32, 8}, dtype, 9, kKeys);
  p.fill_equal();
  const double sums = (64 + kKeys / 64) * 0x1p-24;
  check(p, {sums + (rounds_p ? 0x1p-9 : 0), sums / std::log(kKeys)}, "9 rows");
}

INSTANTIATE_TEST_SUITE_P(Targets, LongAttention, testing::ValuesIn(targets()), target_name);

// Scratch is bounded, not a partial of every 256 keys: 128 splits of (16 heads, 32 + 1 floats) are
// 0.3 MB, work items and the two threads' own tiles the rest.
TEST(LongAttentionScratch, DoesNotGrowWithTheKeys) {
  LongProblem p({16, 2, 32}, DType::kBF16, 1, 1 << 20);
  p.fill_random();
  CpuQueue queue(2);
  OwnedPartial got(1, p.shape());
  attend(queue, p.q(), p.segments(), p.format, 0.1f, got.view());
  EXPECT_LT(queue.scratch_peak_bytes(), 1 << 20);
}

}  // namespace
}  // namespace annulus::kernels
