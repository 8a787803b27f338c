// SPDX-License-Identifier: Apache-2.0
#include "kernels/weight.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::kernels {
namespace {

// Every code of OCP's E4M3 against its definition: (-1)^s 2^(e-7) (1 + m/8), 2^-6 m/8 where e is 0,
// no number where all bits are set.
TEST(F8E4M3, EveryCode) {
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float got = f8_e4m3_to_float(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(got));
      continue;
    }
    const double size = exponent == 0 ? std::ldexp(mantissa / 8.0, -6)
                                      : std::ldexp(1 + mantissa / 8.0, exponent - 7);
    EXPECT_EQ(static_cast<double>(got), code < 128 ? size : -size) << code;
    EXPECT_EQ(std::signbit(got), code >= 128);
  }
  EXPECT_EQ(f8_e4m3_to_float(0x7e), 448.0f);
}

// Every code comes back; a float between two codes goes to the nearer, halfway to the even one.
TEST(F8E4M3, FloatsGoToTheNearestCode) {
  for (int code = 0; code < 0x7f; ++code) {
    const float here = f8_e4m3_to_float(static_cast<uint8_t>(code));
    for (const int sign : {0, 0x80}) {
      const auto to_code = [&](float size) { return float_to_f8_e4m3(sign != 0 ? -size : size); };
      EXPECT_EQ(to_code(here), code | sign);
      if (code == 0x7e) continue;
      const float half = (here + f8_e4m3_to_float(static_cast<uint8_t>(code + 1))) / 2;
      EXPECT_EQ(to_code(half), (code + code % 2) | sign);
      EXPECT_EQ(to_code(std::nextafter(half, 0.0f)), code | sign);
      EXPECT_EQ(to_code(std::nextafter(half, 1e3f)), (code + 1) | sign);
    }
  }
  for (const float large : {449.0f, 464.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(float_to_f8_e4m3(large), 0x7e);
    EXPECT_EQ(float_to_f8_e4m3(-large), 0xfe);
  }
  EXPECT_EQ(float_to_f8_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
  EXPECT_EQ(float_to_f8_e4m3(1e-30f), 0);
}

class WeightTest : public testing::TestWithParam<WeightFormat> {};

// Two roundings (d times an integer scale or plus m) at most: 2^-23 of |d q| + |m|.
TEST_P(WeightTest, DequantisesRowsAndAnySliceOfColumns) {
  WeightProblem problem(GetParam(), 5, 768, false, 3);
  WeightSource source = problem.source();
  for (auto [first, count] : {std::pair<int64_t, int64_t>{0, 768},
                              {256, 256},
                              {32, 64},
                              {1, 300},
                              {767, 1},
                              {31, 2},
                              {100, 668}}) {
    WeightSource slice = source.slice_rows(1, 3).slice_cols(first, count);
    std::vector<float> row(static_cast<size_t>(count) + 1, 77.0f);
    for (int64_t r = 0; r < 3; ++r) {
      dequantise_row(slice, r, row.data());
      for (int64_t c = 0; c < count; ++c)
        EXPECT_NEAR(row[static_cast<size_t>(c)], problem.value(r + 1, first + c),
                    0x1p-23 * problem.size(r + 1, first + c))
            << "row " << r << " column " << c;
      EXPECT_EQ(row.back(), 77.0f);
    }
  }
}

// Which formats stay as they are, and what they cost: bytes per weight of weight.h.
TEST_P(WeightTest, HeldFormatAndBytes) {
  WeightFormat format = GetParam();
  WeightProblem problem(format, 64, 512, false, 4);
  WeightSource source = problem.source();
  bool keeps = format == WeightFormat::kQ8_0 || format == WeightFormat::kQ4_0 ||
               format == WeightFormat::kQ4_1;
  PackedMatrix w = PackedMatrix::pack({&source, 1}, Precision::kDefault);
  EXPECT_EQ(w.format(), keeps ? format : WeightFormat::kBF16);
  EXPECT_EQ(w.n(), 64);
  EXPECT_EQ(w.k(), 512);
  WeightBlock block = block_of(w.format());
  EXPECT_EQ(w.bytes(), 64 * 512 / block.weights * block.bytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(w.data()) % 64, 0u);
  PackedMatrix f32 = PackedMatrix::pack({&source, 1}, Precision::kF32);
  EXPECT_EQ(f32.format(), WeightFormat::kF32);
  EXPECT_EQ(f32.bytes(), 64 * 512 * 4);
  WeightSource odd = source.slice_cols(16, 64);
  EXPECT_EQ(PackedMatrix::pack({&odd, 1}, Precision::kDefault).format(), WeightFormat::kBF16);
  WeightSource even = source.slice_cols(32, 64);
  EXPECT_EQ(PackedMatrix::pack({&even, 1}, Precision::kDefault).format(), w.format());
}

std::string format_name(const testing::TestParamInfo<WeightFormat>& info) {
  return name(info.param);
}
INSTANTIATE_TEST_SUITE_P(Formats, WeightTest, testing::ValuesIn(kAllFormats), format_name);

TEST(Weight, MixedFormatsAreHeldWide) {
  WeightProblem a(WeightFormat::kQ8_0, 8, 64, false, 5), b(WeightFormat::kQ4_0, 3, 64, false, 6);
  WeightSource sources[] = {a.source(), b.source()};
  PackedMatrix w = PackedMatrix::pack(sources, Precision::kDefault);
  EXPECT_EQ(w.format(), WeightFormat::kBF16);
  EXPECT_EQ(w.n(), 11);
}

}  // namespace
}  // namespace annulus::kernels
