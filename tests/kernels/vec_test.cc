// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/queue.h"
#include "tests/kernels/vec_checks.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class VecTest : public testing::TestWithParam<CpuIsa> {
 protected:
  const VecChecks& vec_ = ANNULUS_SELECT_ISA(GetParam(), kVecChecks);

  float exp(float x) const {
    std::vector<float> in(16, x), out(16);
    vec_.exp(in.data(), out.data(), 1);
    return out[5];
  }
};

// The contract of vec.h: 2e-7 relative over the whole range, a million points and the seams.
TEST_P(VecTest, ExpIsAccurate) {
  constexpr int64_t kCount = 1 << 20;
  std::vector<float> x(kCount), y(kCount);
  for (int64_t i = 0; i < kCount; ++i)
    x[static_cast<size_t>(i)] = static_cast<float>(-86.4 + (88.7 + 86.4) * static_cast<double>(i) /
                                                               static_cast<double>(kCount - 1));
  vec_.exp(x.data(), y.data(), kCount / 16);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::abs(y[i] / std::exp(static_cast<double>(x[i])) - 1));
  EXPECT_LE(worst, 2e-7);
  for (int i = -20000; i <= 20000; ++i) {
    float small = static_cast<float>(i) * 1e-5f;
    ASSERT_NEAR(exp(small), std::exp(static_cast<double>(small)), 2.5e-7);
  }
}

TEST_P(VecTest, ExpAtTheEnds) {
  EXPECT_EQ(exp(0.0f), 1.0f);
  EXPECT_EQ(exp(-0.0f), 1.0f);
  for (float x : {-kInf, -std::numeric_limits<float>::max(), -1e6f, -200.0f, -103.0f, -86.51f})
    EXPECT_EQ(exp(x), 0.0f) << x;
  EXPECT_GT(exp(-86.5f), 0.0f);
  EXPECT_LT(exp(88.72f), kInf);
  for (float x : {88.73f, 89.0f, 200.0f, 1e30f, kInf}) EXPECT_EQ(exp(x), kInf) << x;
  EXPECT_TRUE(std::isnan(exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_P(VecTest, Arithmetic) {
  auto a = random_floats(16, false, 1), b = random_floats(16, false, 2);
  auto c = random_floats(16, false, 3);
  float out[9][16];
  vec_.arithmetic(a.data(), b.data(), c.data(), out);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(out[0][i], a[i] + b[i]);
    EXPECT_EQ(out[1][i], a[i] - b[i]);
    EXPECT_EQ(out[2][i], a[i] * b[i]);
    EXPECT_EQ(out[3][i], a[i] / b[i]);
    double product = static_cast<double>(a[i]) * b[i];
    EXPECT_NEAR(out[4][i], product + c[i], 0x1p-23 * (std::abs(product) + std::abs(c[i])));
    EXPECT_EQ(out[5][i], std::max(a[i], b[i]));
    EXPECT_EQ(out[6][i], std::min(a[i], b[i]));
    EXPECT_EQ(out[7][i], a[i ^ 1]);
    EXPECT_EQ(out[8][i], c[3]);
  }
}

TEST_P(VecTest, Reductions) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    auto x = random_floats(16, true, seed);
    float sum = 0;
    for (float v : x) sum += v;
    EXPECT_EQ(vec_.sum(x.data()), sum);
    EXPECT_EQ(vec_.maximum(x.data()), *std::max_element(x.begin(), x.end()));
  }
  std::vector<float> hidden(16, -kInf);
  EXPECT_EQ(vec_.maximum(hidden.data()), -kInf);
}

// The element behind the end of a partial load is NaN: it must not leak; that behind a partial
// store must survive.
TEST_P(VecTest, PartialLoadsAndStores) {
  auto x = random_floats(16, false, 4);
  for (int n = 0; n <= 16; ++n) {
    size_t count = static_cast<size_t>(n);
    std::vector<float> from(x.begin(), x.begin() + n), to(17, 7.0f);
    from.push_back(std::numeric_limits<float>::quiet_NaN());
    vec_.copy_n(from.data(), to.data(), n);
    for (size_t i = 0; i < 16; ++i) EXPECT_EQ(to[i], i < count ? x[i] : 0.0f);
    std::fill(to.begin(), to.end(), 7.0f);
    vec_.copy_to_n(x.data(), to.data(), n);
    for (size_t i = 0; i < 17; ++i) EXPECT_EQ(to[i], i < count ? x[i] : 7.0f);

    std::vector<bf16> low(17, bf16{0x4242});
    vec_.round(x.data(), low.data(), n);
    for (size_t i = 0; i < 17; ++i)
      EXPECT_EQ(low[i].bits, i < count ? to_bf16(x[i]).bits : 0x4242) << i;
    vec_.copy_bf16_n(low.data(), to.data(), n);
    for (size_t i = 0; i < 16; ++i) EXPECT_EQ(to[i], i < count ? to_float(low[i]) : 0.0f);
  }
}

TEST_P(VecTest, Bf16RoundsToNearestEven) {
  std::vector<float> x = {1.00390625f,
                          1.01171875f,
                          -1.00390625f,
                          3.4e38f,
                          -kInf,
                          0.0f,
                          -0.0f,
                          std::numeric_limits<float>::quiet_NaN(),
                          std::bit_cast<float>(0x7f800001u)};
  x.resize(16, 0.1f);
  bf16 low[16];
  float wide[16];
  vec_.round(x.data(), low, 16);
  vec_.widen(low, wide);
  for (size_t i = 0; i < 16; ++i) {
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(wide[i]));
    } else {
      EXPECT_EQ(low[i].bits, to_bf16(x[i]).bits) << x[i];
      EXPECT_EQ(wide[i], to_float(low[i]));
    }
  }
}

TEST_P(VecTest, Masks) {
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  std::vector<int32_t> p = {5, kMax, -3, 0, 7, kMin, 6, 5, 4, 3, 2, 1, 100, 200, 300, 8};
  for (int32_t bound : {kMin, -1, 5, 7, kMax - 1, kMax})
    for (int n = 0; n <= 16; ++n) {
      float out[16];
      bool any = false, all = false, any_expected = false, all_expected = true;
      vec_.visible(p.data(), n, bound, out, &any, &all);
      for (int i = 0; i < 16; ++i) {
        bool expected = i < n && p[static_cast<size_t>(i)] <= bound;
        any_expected |= expected;
        all_expected &= expected;
        EXPECT_EQ(out[i], expected ? 1.0f : 0.0f);
      }
      EXPECT_EQ(any, any_expected);
      EXPECT_EQ(all, all_expected);
    }
}

TEST_P(VecTest, BytesAndHalves) {
  for (int start = 0; start < 256; start += 16) {
    int8_t bytes[16];
    uint16_t halves[16];
    float out[16];
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>(start + i);
    vec_.bytes(bytes, out);
    for (int i = 0; i < 16; ++i) EXPECT_EQ(out[i], static_cast<float>(bytes[i]));
    for (int i = 0; i < 16; ++i) halves[i] = static_cast<uint16_t>((start + i) * 251 & 0xfbff);
    vec_.halves(halves, out);
    for (int i = 0; i < 16; ++i) EXPECT_EQ(out[i], half_to_float(halves[i])) << halves[i];
  }
}

TEST_P(VecTest, DotOfPairs) {
  if (vec_.dot == nullptr) GTEST_SKIP() << "no vdpbf16ps in " << name(GetParam());
  bf16 a[2] = {to_bf16(3), to_bf16(-5)}, b[32];
  float acc[16], out[16];
  for (int i = 0; i < 32; ++i) b[i] = to_bf16(static_cast<float>(i - 7));
  for (int i = 0; i < 16; ++i) acc[i] = static_cast<float>(100 * i);
  vec_.dot(a, b, acc, out);
  for (int i = 0; i < 16; ++i)
    EXPECT_EQ(out[i], static_cast<float>(100 * i + 3 * (2 * i - 7) - 5 * (2 * i - 6)));
}

std::vector<CpuIsa> isas() {
  std::vector<CpuIsa> all;
  for (const CpuIsa isa : kCpuIsas)
    if (isa <= detect_cpu_isa()) all.push_back(isa);
  return all;
}
std::string isa_name(const testing::TestParamInfo<CpuIsa>& info) {
  std::string text = name(info.param);
  for (char& c : text)
    if (c == '-') c = '_';
  return text;
}
INSTANTIATE_TEST_SUITE_P(All, VecTest, testing::ValuesIn(isas()), isa_name);

}  // namespace
}  // namespace annulus::kernels
