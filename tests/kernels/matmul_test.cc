// SPDX-License-Identifier: Apache-2.0
// matmul over every ISA that this machine runs, every file format, both precisions.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cpu/queue.h"
#include "kernels/ops.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/guarded.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::kernels {
namespace {

std::vector<CpuIsa> isas() {
  std::vector<CpuIsa> all;
  for (const CpuIsa isa : kCpuIsas)
    if (isa <= detect_cpu_isa()) all.push_back(isa);
  return all;
}

struct Shape {
  int64_t n, k;
};

// Legal for the format: whole panels, tails of N, tails of K, K beyond one pass.
std::vector<Shape> shapes(WeightFormat format) {
  if (format == WeightFormat::kQ6_K) return {{64, 256}, {33, 512}, {7, 768}};
  std::vector<Shape> all = {{64, 64}, {33, 32}, {5, 96}, {130, 288}, {96, 1056}};
  if (block_of(format).weights == 1)
    for (Shape s : {Shape{1, 1}, {7, 17}, {50, 31}, {70, 33}, {40, 1029}}) all.push_back(s);
  return all;
}

using Param = std::tuple<CpuIsa, WeightFormat, Precision>;

class MatmulTest : public testing::TestWithParam<Param> {
 protected:
  CpuIsa isa() const { return std::get<0>(GetParam()); }
  WeightFormat format() const { return std::get<1>(GetParam()); }
  Precision precision() const { return std::get<2>(GetParam()); }

  std::vector<float> run(CpuQueue& queue, const std::vector<float>& x, int64_t rows,
                         const PackedMatrix& w) {
    // Rows of out lie 5 apart from each other; what is between must not change, and behind the last
    // row, as behind x, there is no memory.
    const int64_t stride = w.n() + 5, size = rows == 0 ? 0 : rows * stride - 5;
    Guarded<float> out(static_cast<size_t>(size)), own(static_cast<size_t>(rows * w.k()));
    std::fill(out.begin(), out.end(), 123.0f);
    std::copy_n(x.begin(), own.size(), own.begin());
    std::vector<float> dense;
    Tensor view{out.data(), DType::kF32, rows, w.n(), stride};
    matmul(queue, view, matrix(std::as_const(own).data(), rows, w.k()), w);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < stride && r * stride + c < size; ++c) {
        float value = out[static_cast<size_t>(r * stride + c)];
        if (c < w.n())
          dense.push_back(value);
        else
          EXPECT_EQ(value, 123.0f) << "row " << r << " column " << c;
      }
    return dense;
  }
};

constexpr int64_t kRows[] = {0, 1, 2, 3, 7, 8, 9, 14, 15, 31, 64, 65, 200};

// Small integers: every product and sum is exact in every path, so the result is too.
TEST_P(MatmulTest, IntegersAreExact) {
  for (Shape shape : shapes(format())) {
    WeightProblem problem(format(), shape.n, shape.k, true, 11);
    WeightSource source = problem.source();
    PackedMatrix w = PackedMatrix::pack({&source, 1}, precision());
    auto x = random_floats(200 * shape.k, true, 12);
    ReferenceMatrix weights(shape.n, shape.k);
    weights.values = problem.values;
    ReferenceMatrix expected = reference_matmul({x.data(), 200, shape.k}, weights);
    for (int threads : {1, 3}) {
      CpuQueue queue(threads, isa());
      for (int64_t rows : kRows) {
        auto out = run(queue, x, rows, w);
        for (size_t i = 0; i < out.size(); ++i)
          ASSERT_EQ(out[i], static_cast<float>(expected.values[i]))
              << shape.n << " x " << shape.k << ", rows " << rows << ", at " << i;
      }
    }
  }
}

// Bound: one f32 accumulator over k terms errs by at most (k + c) 2^-24 times the sum of |x| |w|
// (Higham, Accuracy and Stability, section 3.1; c = 8 covers scales and block sums), bf16 operands
// add 2^-8 (half an ulp at 8 bits) each where they are rounded: x under vdpbf16ps, w where a wider
// file format is held as bf16.
TEST_P(MatmulTest, WithinRoundingOfTheReference) {
  bool wide = block_of(format()).weights == 1 || format() == WeightFormat::kQ6_K;
  for (Shape shape : shapes(format())) {
    WeightProblem problem(format(), shape.n, shape.k, false, 21);
    WeightSource source = problem.source();
    PackedMatrix w = PackedMatrix::pack({&source, 1}, precision());
    auto x = random_floats(200 * shape.k, false, 22);
    ReferenceMatrix weights(shape.n, shape.k), sizes(shape.n, shape.k);
    weights.values = problem.values;
    sizes.values = problem.sizes;
    ReferenceMatrix x_matrix(x.data(), 200, shape.k), x_sizes = x_matrix;
    for (double& v : x_sizes.values) v = std::abs(v);
    ReferenceMatrix expected = reference_matmul(x_matrix, weights);
    ReferenceMatrix norms = reference_matmul(x_sizes, sizes);
    double epsilon = static_cast<double>(shape.k + 8) * 0x1p-24;
    if (precision() == Precision::kDefault) {
      if (wide) epsilon += 0x1p-8;
      if (isa() >= CpuIsa::kAvx512Bf16) epsilon += 0x1.02p-8;
    }
    CpuQueue queue(2, isa());
    for (int64_t rows : kRows) {
      auto out = run(queue, x, rows, w);
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(out[i], expected.values[i], epsilon * norms.values[i])
            << shape.n << " x " << shape.k << ", rows " << rows << ", at " << i;
    }
  }
}

// The promise of matmul_kernels.h: a row's bits depend on nothing but the row.
TEST_P(MatmulTest, RowsDoNotDependOnTheBatch) {
  for (Shape shape : shapes(format())) {
    WeightProblem problem(format(), shape.n, shape.k, false, 31);
    WeightSource source = problem.source();
    PackedMatrix w = PackedMatrix::pack({&source, 1}, precision());
    auto x = random_floats(67 * shape.k, false, 32);
    // Products of these and small weights are subnormal, or nearly.
    for (size_t i = 0; i < x.size(); i += 7) x[i] *= 0x1p-120f;
    CpuQueue one(1, isa()), three(3, isa());
    for (int64_t all : {65, 66, 67}) {  // the last block has 1, 2 or 3 rows of 16
      auto whole = run(three, x, all, w);
      for (int64_t rows : {1, 2, 3, 5, 8, 13, 14, 16}) {
        int64_t first = all - rows;
        std::vector<float> part(x.begin() + first * shape.k, x.begin() + (first + rows) * shape.k);
        auto out = run(one, part, rows, w);
        for (size_t i = 0; i < out.size(); ++i)
          ASSERT_EQ(std::bit_cast<uint32_t>(out[i]),
                    std::bit_cast<uint32_t>(whole[static_cast<size_t>(first * shape.n) + i]))
              << shape.n << " x " << shape.k << ", rows " << rows << " of " << all << ", at " << i;
      }
    }
  }
}

std::string param_name(const testing::TestParamInfo<Param>& info) {
  std::string text = name(std::get<0>(info.param));
  if (text == "avx512-bf16") text = "avx512_bf16";
  bool f32 = std::get<2>(info.param) == Precision::kF32;
  return text + "_" + name(std::get<1>(info.param)) + (f32 ? "_f32" : "");
}
INSTANTIATE_TEST_SUITE_P(All, MatmulTest,
                         testing::Combine(testing::ValuesIn(isas()), testing::ValuesIn(kAllFormats),
                                          testing::Values(Precision::kDefault, Precision::kF32)),
                         param_name);

TEST(Matmul, ReadsAStridedView) {
  WeightProblem problem(WeightFormat::kF32, 10, 20, true, 1);
  WeightSource source = problem.source();
  PackedMatrix w = PackedMatrix::pack({&source, 1}, Precision::kF32);
  auto x = random_floats(6 * 33, true, 2);
  ConstTensor view{x.data(), DType::kF32, 6, 33, 33};
  view = view.slice_cols(9, 20);
  ReferenceMatrix all(x.data(), 6, 33), part(6, 20), weights(10, 20);
  weights.values = problem.values;
  for (int64_t r = 0; r < 6; ++r)
    for (int64_t c = 0; c < 20; ++c) part.at(r, c) = all.at(r, c + 9);
  ReferenceMatrix expected = reference_matmul(part, weights);
  for (CpuIsa isa : isas()) {
    CpuQueue queue(1, isa);
    std::vector<float> out(60);
    matmul(queue, matrix(out.data(), 6, 10), view, w);
    for (size_t i = 0; i < 60; ++i) EXPECT_EQ(out[i], static_cast<float>(expected.values[i]));
  }
}

TEST(GuardedDeathTest, EndsWhereMemoryDoes) {
  const Guarded<float> nine(9);
  const volatile float* const end = nine.end();
  EXPECT_EQ(end[-1], 0.0f);
  EXPECT_DEATH(static_cast<void>(*end), "");
}

TEST(MatmulDeathTest, ShapesAreChecked) {
  WeightProblem problem(WeightFormat::kF32, 4, 8, true, 1);
  WeightSource source = problem.source();
  PackedMatrix w = PackedMatrix::pack({&source, 1}, Precision::kF32);
  CpuQueue queue(1);
  std::vector<float> x(16), out(8);
  EXPECT_DEATH(matmul(queue, matrix(out.data(), 2, 4), matrix(std::as_const(x).data(), 2, 7), w),
               "check failed: x.cols == w.k");
}

}  // namespace
}  // namespace annulus::kernels
