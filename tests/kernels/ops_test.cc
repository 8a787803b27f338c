// SPDX-License-Identifier: Apache-2.0
// The row ops over every ISA that this machine runs, columns of any length.
#include "kernels/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/queue.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kRows[] = {0, 1, 3, 40};
constexpr int64_t kCols[] = {1, 7, 15, 16, 17, 31, 64, 65, 127, 576, 1000};

class OpsTest : public testing::TestWithParam<CpuIsa> {
 protected:
  CpuQueue queue_{3, GetParam()};
};

ConstTensor view(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return matrix(values.data(), rows, cols);
}

// |out - expected| <= epsilon * |expected| + tiny, everywhere.
void expect_close(const std::vector<float>& out, const ReferenceMatrix& expected, double epsilon) {
  ASSERT_EQ(out.size(), expected.values.size());
  for (size_t i = 0; i < out.size(); ++i)
    ASSERT_NEAR(out[i], expected.values[i], epsilon * std::abs(expected.values[i]) + 1e-37) << i;
}

// A sum of n squares is off by at most n / 64 + 8 roundings relative to itself (all terms are
// positive; 64 partial sums), its root by half of that; four roundings follow.
TEST_P(OpsTest, RmsNorm) {
  for (int64_t rows : kRows)
    for (int64_t cols : kCols) {
      auto x = random_floats(rows * cols, false, 1), weight = random_floats(cols, false, 2);
      std::vector<float> out(x.size());
      rms_norm(queue_, matrix(out.data(), rows, cols), view(x, rows, cols), weight.data(), 1e-5f);
      auto expected = reference_rms_norm({x.data(), rows, cols}, weight, 1e-5f);
      double epsilon = (static_cast<double>(cols) / 32 + 12) * 0x1p-24;
      expect_close(out, expected, epsilon);
      rms_norm(queue_, matrix(x.data(), rows, cols), view(x, rows, cols), weight.data(), 1e-5f);
      EXPECT_EQ(x, out) << "in place";
    }
}

// Two products and a sum: relative to |a cos| + |b sin|, two roundings.
TEST_P(OpsTest, Rope) {
  for (int32_t head_dim : {2, 6, 32, 64, 66, 128})
    for (int64_t heads : {1, 3})
      for (RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
        int64_t rows = 5, cols = heads * head_dim;
        auto x = random_floats(rows * cols, false, 3);
        std::vector<float> angles;
        for (int64_t r = 0; r < rows; ++r) {
          for (int i = 0; i < head_dim / 2; ++i)
            angles.push_back(static_cast<float>(std::cos(static_cast<double>(r) + 0.1 * i)));
          for (int i = 0; i < head_dim / 2; ++i)
            angles.push_back(static_cast<float>(std::sin(static_cast<double>(r) + 0.1 * i)));
        }
        auto expected = reference_rope({x.data(), rows, cols}, {angles.data(), rows, head_dim},
                                       head_dim, pairing);
        double largest = 0;
        for (float v : x) largest = std::max(largest, std::abs(static_cast<double>(v)));
        rope(queue_, matrix(x.data(), rows, cols), view(angles, rows, head_dim), head_dim, pairing);
        for (size_t i = 0; i < x.size(); ++i)
          ASSERT_NEAR(x[i], expected.values[i], 3 * 0x1p-24 * 2 * largest) << i;
      }
}

TEST_P(OpsTest, RopeByZeroAnglesIsExact) {
  auto x = random_floats(2 * 64, false, 4), before = x;
  std::vector<float> angles(2 * 64, 1.0f);
  for (size_t i = 0; i < angles.size(); ++i) angles[i] = i % 64 < 32 ? 1.0f : 0.0f;
  rope(queue_, matrix(x.data(), 2, 64), view(angles, 2, 64), 64, RopePairing::kAdjacent);
  EXPECT_EQ(x, before);
}

// exp within 2e-7, then a sum, a division and a product: 6e-7 in all.
TEST_P(OpsTest, Swiglu) {
  for (int64_t rows : kRows)
    for (int64_t cols : kCols) {
      auto x = random_floats(rows * 2 * cols, false, 5);
      for (float& v : x) v *= 5;
      std::vector<float> out(static_cast<size_t>(rows * cols));
      swiglu(queue_, matrix(out.data(), rows, cols), view(x, rows, 2 * cols));
      expect_close(out, reference_swiglu({x.data(), rows, 2 * cols}), 6e-7);
    }
}

TEST_P(OpsTest, SwigluAtTheEnds) {
  std::vector<float> x = {-1e30f, -200.0f, -88.0f, 88.0f, 200.0f, 1e30f, 1, 1, 1, 1, 1, 1};
  std::vector<float> out(6);
  swiglu(queue_, matrix(out.data(), 1, 6), view(x, 1, 12));
  EXPECT_EQ(out[0], 0);
  EXPECT_EQ(out[1], 0);
  EXPECT_NEAR(out[2], 0, 1e-36);
  for (size_t i : {3, 4, 5}) EXPECT_EQ(out[i], x[i]);
}

TEST_P(OpsTest, AddIsExact) {
  for (int64_t cols : kCols) {
    auto x = random_floats(3 * cols, false, 6), y = random_floats(3 * cols, false, 7), sum = x;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
    add(queue_, matrix(x.data(), 3, cols), view(y, 3, cols));
    EXPECT_EQ(x, sum);
  }
}

TEST_P(OpsTest, ConvertRoundsToNearestEven) {
  for (int64_t cols : kCols) {
    auto x = random_floats(3 * cols, false, 8);
    x[0] = 1.00390625f;  // half way between 1 and the next bf16
    if (x.size() > 3) {
      x[1] = std::numeric_limits<float>::infinity();
      x[2] = -0.0f;
      x[3] = 3.4e38f;  // rounds to infinity
    }
    std::vector<bf16> low(x.size() + 1, bf16{0x1234});
    Tensor low_view{low.data(), DType::kBF16, 3, cols, cols};
    convert(queue_, low_view, view(x, 3, cols));
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(low[i].bits, to_bf16(x[i]).bits) << x[i];
    EXPECT_EQ(low.back().bits, 0x1234);
    std::vector<float> back(x.size());
    convert(queue_, matrix(back.data(), 3, cols), low_view);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(back[i], to_float(low[i]));
    std::vector<float> copy(x.size());
    convert(queue_, matrix(copy.data(), 3, cols), view(x, 3, cols));
    EXPECT_EQ(copy, x);
  }
}

TEST_P(OpsTest, GatherRows) {
  auto x = random_floats(7 * 33, false, 9);
  std::vector<int32_t> index = {6, 0, 3, 3};
  auto expected = reference_gather_rows({x.data(), 7, 33}, index);
  std::vector<float> out(4 * 33);
  gather_rows(queue_, matrix(out.data(), 4, 33), view(x, 7, 33), index);
  expect_close(out, expected, 0);
  std::vector<bf16> low(7 * 33), low_out(4 * 33);
  for (size_t i = 0; i < low.size(); ++i) low[i] = to_bf16(x[i]);
  gather_rows(queue_, Tensor{low_out.data(), DType::kBF16, 4, 33, 33},
              Tensor{low.data(), DType::kBF16, 7, 33, 33}, index);
  for (size_t i = 0; i < low_out.size(); ++i)
    EXPECT_EQ(low_out[i].bits, to_bf16(static_cast<float>(expected.values[i])).bits);
}

TEST_P(OpsTest, EmbedReadsRowsOfAnyFormat) {
  for (WeightFormat format : kAllFormats) {
    WeightProblem table(format, 9, 512, true, 10);
    std::vector<int32_t> ids = {8, 1, 1, 0};
    std::vector<float> out(4 * 512);
    embed(queue_, matrix(out.data(), 4, 512), table.source(), ids);
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t c = 0; c < 512; ++c)
        ASSERT_EQ(out[static_cast<size_t>(r * 512 + c)],
                  table.value(ids[static_cast<size_t>(r)], c))
            << name(format);
  }
}

std::string isa_name(const testing::TestParamInfo<CpuIsa>& info) {
  std::string text = name(info.param);
  for (char& c : text)
    if (c == '-') c = '_';
  return text;
}
std::vector<CpuIsa> isas() {
  std::vector<CpuIsa> all;
  for (const CpuIsa isa : kCpuIsas)
    if (isa <= detect_cpu_isa()) all.push_back(isa);
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, OpsTest, testing::ValuesIn(isas()), isa_name);

}  // namespace
}  // namespace annulus::kernels
