// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/queue.h"
#include "kernels/ops.h"
#include "parallel/model/gguf.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

LlamaConfig config_of(int32_t head_dim, double theta) {
  LlamaConfig config;
  config.head_dim = head_dim;
  config.rope_theta = theta;
  return config;
}

const RopeScaling kLlama31 = {RopeScaling::Kind::kLlama3, 8, 1, 4, 8192};

TEST(Rope, EqualsLongDoubleUpToAMillion) {
  const LlamaConfig config = config_of(64, 100000);
  const std::vector<double> frequencies = rope_frequencies(config);
  ASSERT_EQ(frequencies.size(), 32u);
  const std::vector<int32_t> positions = {0,    1,       2,       37,      8191,
                                          8192, 1000000, 1048575, 1 << 20, (1 << 20) + 1};
  std::vector<float> table(positions.size() * 64);
  fill_cos_sin(frequencies, positions, table.data());
  // The angle is off by pos * frequency * (2^-52 of pow + 2^-53 of the product) <= 4e-10; rounding
  // to float adds half a unit in the last place of a number below 1.
  const double bound = 0x1p-25 + 4e-10;
  for (size_t r = 0; r < positions.size(); ++r) {
    for (size_t i = 0; i < 32; ++i) {
      const long double exact = static_cast<long double>(positions[r]) *
                                std::pow(100000.0L, -2.0L * static_cast<long double>(i) / 64.0L);
      const long double cosine = table[r * 64 + i], sine = table[r * 64 + 32 + i];
      EXPECT_LE(std::fabs(cosine - std::cos(exact)), bound) << positions[r] << " pair " << i;
      EXPECT_LE(std::fabs(sine - std::sin(exact)), bound) << positions[r] << " pair " << i;
    }
  }
}

// Table and kernel together, as a layer uses them, around 2^20: rotated pairs against double. The
// table errs by 2^-25 and the angle by 4e-10 (above), two products and their sum by 2^-24 of
// |x| + |y| each.
TEST(Rope, RotatesExactlyAroundAMillion) {
  constexpr int32_t kHeadDim = 64, kHeads = 3;
  for (const kernels::CpuIsa isa : kernels::kCpuIsas) {
    if (isa > kernels::detect_cpu_isa()) continue;
    for (const auto pairing : {kernels::RopePairing::kHalves, kernels::RopePairing::kAdjacent}) {
      for (const double theta : {10000.0, 500000.0}) {
        const std::vector<double> frequencies = rope_frequencies(config_of(kHeadDim, theta));
        const std::vector<int32_t> positions = {(1 << 20) - 1, 1 << 20, (1 << 20) + 1};
        std::vector<float> table(positions.size() * kHeadDim);
        fill_cos_sin(frequencies, positions, table.data());
        std::vector<float> x(positions.size() * kHeads * kHeadDim);
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) / 25 - 2;
        const std::vector<float> before = x;
        const auto rows = static_cast<int64_t>(positions.size());
        kernels::CpuQueue queue(1, isa);
        kernels::rope(queue, kernels::matrix(x.data(), rows, kHeads * kHeadDim),
                      kernels::matrix(table.data(), rows, kHeadDim), kHeadDim, pairing);
        for (size_t r = 0; r < positions.size(); ++r) {
          for (size_t h = 0; h < kHeads; ++h) {
            for (size_t i = 0; i < kHeadDim / 2; ++i) {
              const bool halves = pairing == kernels::RopePairing::kHalves;
              const size_t head = (r * kHeads + h) * kHeadDim;
              const size_t a = head + (halves ? i : 2 * i);
              const size_t b = head + (halves ? i + kHeadDim / 2 : 2 * i + 1);
              const double angle = positions[r] * frequencies[i];
              const auto u = static_cast<double>(before[a]), v = static_cast<double>(before[b]);
              const double bound = 4 * 0x1p-24 * (std::abs(u) + std::abs(v));
              EXPECT_NEAR(x[a], u * std::cos(angle) - v * std::sin(angle), bound);
              EXPECT_NEAR(x[b], v * std::cos(angle) + u * std::sin(angle), bound);
            }
          }
        }
      }
    }
  }
}

TEST(Rope, PaddingRowsAreNotRotated) {
  const std::vector<double> frequencies = rope_frequencies(config_of(4, 10000));
  const std::vector<int32_t> positions = {std::numeric_limits<int32_t>::min()};
  std::vector<float> row(4);
  fill_cos_sin(frequencies, positions, row.data());
  EXPECT_EQ(row, (std::vector<float>{1, 1, 0, 0}));
}

TEST(Rope, LinearScalingDividesAllFrequencies) {
  LlamaConfig config = config_of(32, 10000);
  const std::vector<double> plain = rope_frequencies(config);
  config.rope_scaling = {RopeScaling::Kind::kLinear, 4, 1, 4, 0};
  const std::vector<double> scaled = rope_frequencies(config);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(scaled[i], plain[i] / 4);
}

// The published rule, written as a piecewise function of the wavelength, in long double.
TEST(Rope, Llama3ScalingFollowsThePublishedRule) {
  LlamaConfig config = config_of(128, 500000);
  const std::vector<double> plain = rope_frequencies(config);
  config.rope_scaling = kLlama31;
  const std::vector<double> scaled = rope_frequencies(config);
  int kept = 0, blended = 0, divided = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const long double f = std::pow(500000.0L, -static_cast<long double>(i) / 64.0L);
    const long double turns = 8192.0L * f / (2 * std::acos(-1.0L));  // within the old context
    long double expected = f;
    if (turns < 1) {
      expected = f / 8;
      ++divided;
    } else if (turns <= 4) {
      const long double smooth = (turns - 1) / (4 - 1);
      expected = (1 - smooth) * f / 8 + smooth * f;
      ++blended;
    } else {
      ++kept;
    }
    EXPECT_NEAR(scaled[i] / static_cast<double>(expected), 1.0, 4e-15) << i;
  }
  EXPECT_EQ(kept, 29);  // wavelength below 2048
  EXPECT_EQ(blended, 6);
  EXPECT_EQ(divided, 29);  // above 8192
}

TEST(Rope, DivisorsOfGgufGiveTheSameFrequencies) {
  testing::TinyModel model;
  model.head_dim = 64;
  model.dim = 64;
  model.rope_theta = 500000;
  model.rope_scaling = kLlama31;
  const std::vector<std::byte> file = testing::tiny_gguf(model);
  const auto gguf = GgufFile::parse(file, "tiny.gguf");
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  const auto from_gguf = config_from_gguf(*gguf);
  ASSERT_TRUE(from_gguf.ok()) << from_gguf.status();
  ASSERT_EQ(from_gguf->rope_divisors.size(), 32u);
  const auto from_json = config_from_json(testing::tiny_config_json(model), "config.json");
  ASSERT_TRUE(from_json.ok()) << from_json.status();
  const std::vector<double> a = rope_frequencies(*from_gguf), b = rope_frequencies(*from_json);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i] / b[i], 1.0, 1e-7) << i;  // float divisors
}

}  // namespace
}  // namespace annulus::parallel
