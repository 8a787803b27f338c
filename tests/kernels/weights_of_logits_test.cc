// SPDX-License-Identifier: Apache-2.0
// What sampling is made of on every device: the order of logits as numbers, weights, products.
#include "kernels/core/weights_of_logits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <limits>
#include <random>

namespace annulus::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(WeightsOfLogits, OrderIsThatOfLogits) {
  const float ascending[] = {-kInf, -3e38f, -1, -1e-40f, 0, 1e-40f, 1, 3e38f, kInf};
  for (size_t i = 1; i < std::size(ascending); ++i) {
    EXPECT_LT(order_of(ascending[i]), order_of(ascending[i - 1])) << ascending[i];
    EXPECT_EQ(logit_of(order_of(ascending[i])), ascending[i]);
  }
  EXPECT_EQ(order_of(-0.0f), order_of(0.0f));
  EXPECT_EQ(order_of(kNan), order_of(-kInf));
}

// 1e-8 of a weight and half a unit.
TEST(WeightsOfLogits, AreTheExponential) {
  for (const int32_t vocab : {1, 96, 49152, 128256, 1 << 20}) {
    const int shift = weight_shift(vocab);
    EXPECT_LT(std::ldexp(static_cast<double>(vocab), shift), 0x1p63);
    EXPECT_EQ(weight_of(0.0, shift), uint64_t{1} << shift);
    for (double x = 0; x > -60; x -= 0.00917) {
      const double want = std::ldexp(std::exp(x), shift);
      EXPECT_NEAR(static_cast<double>(weight_of(x, shift)), want, 1e-8 * want + 0.5) << x;
    }
  }
  for (const double x : {-750.0, -1e300, static_cast<double>(-kInf), static_cast<double>(kNan)})
    EXPECT_EQ(weight_of(x, 46), 0u) << x;
}

TEST(WeightsOfLogits, ProductsAreExact) {
  std::mt19937_64 random(3);
  __extension__ using Wide = unsigned __int128;
  for (int i = 0; i < 10000; ++i) {
    const uint64_t a = random() >> random() % 64, b = random() >> random() % 64;
    EXPECT_EQ(multiply_high(a, b), static_cast<uint64_t>(Wide{a} * b >> 64));
  }
  EXPECT_EQ(multiply_high(~uint64_t{0}, ~uint64_t{0}), ~uint64_t{0} - 1);
}

}  // namespace
}  // namespace annulus::kernels
