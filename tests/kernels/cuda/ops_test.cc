// SPDX-License-Identifier: Apache-2.0
// The ops of kernels/ops.h on a GPU, or on the emulated one, against double precision. Shapes with
// empty inputs, odd widths, rows a stride apart.
#include "kernels/ops.h"

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/matrix.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/product_bound.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kRows[] = {0, 1, 3, 20};
constexpr int64_t kCols[] = {1, 7, 64, 255, 256, 257, 576};
constexpr double kEps = 0x1p-24;

using CudaOps = CudaTest;
using Floats = DeviceArray<float>;

std::vector<float> rounded(std::vector<float> values) {
  for (float& x : values) x = to_float(to_bf16(x));
  return values;
}

// |got - want| <= epsilon * |want| + tiny.
void expect_close(const std::vector<float>& got, const ReferenceMatrix& want, double epsilon,
                  const std::string& what) {
  ASSERT_EQ(got.size(), want.values.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want.values[i], epsilon * std::abs(want.values[i]) + 1e-37)
        << what << " at " << i;
}

// A thread adds up to cols / 256 + 1 squares, then 5 + 8 sums of sums follow; a root halves that,
// and a handful of roundings of its own follow (a GPU's division and root err by one).
TEST_F(CudaOps, RmsNorm) {
  for (const int64_t rows : kRows)
    for (const int64_t cols : kCols) {
      const auto x = random_floats(rows * cols, false, 1), weight = random_floats(cols, false, 2);
      const Floats on_device(queue(), x), w(queue(), weight);
      const auto want = reference_rms_norm({x.data(), rows, cols}, weight, 1e-5f);
      const Tensor m = matrix(on_device.data(), rows, cols);
      rms_norm(queue(), m, m, w.data(), 1e-5f);
      expect_close(on_device.host(), want, (static_cast<double>(cols) / 512 + 12) * kEps,
                   "in place, cols " + std::to_string(cols));
    }
}

TEST_F(CudaOps, RmsNormToBf16) {
  const auto x = random_floats(3 * 65, false, 1), weight = random_floats(65, false, 2);
  const Floats in(queue(), x), w(queue(), weight);
  const DeviceArray<bf16> out(queue(), std::vector<bf16>(x.size()));
  rms_norm(queue(), Tensor{out.data(), DType::kBF16, 3, 65, 65}, matrix(in.data(), 3, 65), w.data(),
           1e-5f);
  std::vector<float> got;
  for (const bf16 b : out.host()) got.push_back(to_float(b));
  expect_close(got, reference_rms_norm({x.data(), 3, 65}, weight, 1e-5f), 0x1p-8 + 20 * kEps, "");
}

// Two products and a sum, relative to |a cos| + |b sin|: three roundings.
TEST_F(CudaOps, Rope) {
  for (const int32_t head_dim : {2, 64, 66, 128})
    for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
      const int64_t rows = 5, heads = 3, cols = heads * head_dim, stride = cols + 8;
      auto x = random_floats(rows * stride, false, 3);
      const auto table = random_floats(rows * head_dim, false, 4);
      std::vector<float> dense;
      for (int64_t r = 0; r < rows; ++r)
        dense.insert(dense.end(), x.begin() + r * stride, x.begin() + r * stride + cols);
      const Floats on_device(queue(), x), cos_sin(queue(), table);
      rope(queue(), {on_device.data(), DType::kF32, rows, cols, stride},
           matrix(cos_sin.data(), rows, head_dim), head_dim, pairing);
      const auto want = reference_rope({dense.data(), rows, cols}, {table.data(), rows, head_dim},
                                       head_dim, pairing);
      const auto got = on_device.host();
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < stride; ++c) {
          const float value = got[static_cast<size_t>(r * stride + c)];
          if (c < cols) {
            ASSERT_NEAR(value, want.at(r, c), 3 * kEps * 32) << r << "," << c;
          } else {
            ASSERT_EQ(value, x[static_cast<size_t>(r * stride + c)]) << "beyond the row";
          }
        }
    }
}

TEST_F(CudaOps, SwigluAddConvertGather) {
  for (const int64_t rows : kRows)
    for (const int64_t cols : {1, 33, 300}) {
      const auto gate_up = random_floats(rows * 2 * cols, false, 5);
      const auto y = random_floats(rows * cols, false, 6);
      const Floats in(queue(), gate_up), other(queue(), y),
          out(queue(), std::vector<float>(y.size()));
      const Tensor to = matrix(out.data(), rows, cols);
      swiglu(queue(), to, matrix(in.data(), rows, 2 * cols));
      const ReferenceMatrix swiglus = reference_swiglu({gate_up.data(), rows, 2 * cols});
      // exp errs by 2 units, division, two sums and products by one each.
      expect_close(out.host(), swiglus, 8 * kEps, "swiglu");

      const auto before = out.host();
      add(queue(), to, matrix(other.data(), rows, cols));
      const auto sums = out.host();
      for (size_t i = 0; i < sums.size(); ++i) ASSERT_EQ(sums[i], before[i] + y[i]) << i;

      const DeviceArray<bf16> narrow(queue(), std::vector<bf16>(y.size()));
      const Tensor bf = {narrow.data(), DType::kBF16, rows, cols, cols};
      convert(queue(), bf, matrix(other.data(), rows, cols));
      convert(queue(), to, bf);
      EXPECT_EQ(out.host(), rounded(y));

      if (rows == 0) continue;
      const std::vector<int32_t> index = {static_cast<int32_t>(rows - 1), 0,
                                          static_cast<int32_t>(rows / 2)};
      const DeviceArray<int32_t> picks(queue(), index);
      const Floats picked(queue(), std::vector<float>(static_cast<size_t>(3 * cols)));
      gather_rows(queue(), matrix(picked.data(), 3, cols), matrix(other.data(), rows, cols),
                  picks.span());
      const auto got = picked.host();
      for (size_t r = 0; r < 3; ++r)
        for (int64_t c = 0; c < cols; ++c)
          ASSERT_EQ(got[r * static_cast<size_t>(cols) + static_cast<size_t>(c)],
                    y[static_cast<size_t>(index[r] * cols + c)]);
    }
}

// Every file format, held as bf16 and as fp32: rows looked up, and products.
TEST_F(CudaOps, WeightsOfEveryFormat) {
  for (const WeightFormat format : kAllFormats)
    for (const Precision precision : {Precision::kDefault, Precision::kF32}) {
      const int64_t k = format == WeightFormat::kQ6_K ? 256 : 96;
      const WeightProblem first(format, 70, k, true, 7), second(format, 3, k, true, 8);
      const WeightSource sources[] = {first.source(), second.source()};
      const CudaMatrix w = CudaMatrix::load(queue(), sources, precision);
      ASSERT_EQ(w.n(), 73);
      ASSERT_EQ(w.bytes(), 73 * k * (precision == Precision::kF32 ? 4 : 2));
      const auto value = [&](int64_t n, int64_t c) {
        return n < 70 ? first.value(n, c) : second.value(n - 70, c);
      };

      const std::vector<int32_t> ids = {72, 0, 69, 70};
      const DeviceArray<int32_t> picks(queue(), ids);
      const Floats rows(queue(), std::vector<float>(4 * static_cast<size_t>(k)));
      embed(queue(), matrix(rows.data(), 4, k), w.rows(), picks.span());
      const auto looked_up = rows.host();
      for (size_t r = 0; r < ids.size(); ++r)
        for (int64_t c = 0; c < k; ++c)
          ASSERT_EQ(
              static_cast<double>(looked_up[r * static_cast<size_t>(k) + static_cast<size_t>(c)]),
              value(ids[r], c))
              << name(format) << " row " << ids[r] << " column " << c;

      // Integers: exact whatever the order.
      for (const int64_t m : {0, 1, 5, 65}) {
        const auto x = random_floats(m * k, true, 9);
        const Floats in(queue(), x), out(queue(), std::vector<float>(static_cast<size_t>(m * 73)));
        matmul(queue(), matrix(out.data(), m, 73), matrix(in.data(), m, k), w);
        const auto got = out.host();
        for (int64_t r = 0; r < m; ++r)
          for (int64_t n = 0; n < 73; ++n) {
            double want = 0;
            for (int64_t c = 0; c < k; ++c)
              want += static_cast<double>(x[static_cast<size_t>(r * k + c)]) * value(n, c);
            ASSERT_EQ(static_cast<double>(got[static_cast<size_t>(r * 73 + n)]), want)
                << name(format) << " M " << m << " at " << r << "," << n;
          }
      }
    }
}

// Any k and n; an fp32 sum in order is off by at most k roundings of sum |x w|.
TEST_F(CudaOps, MatmulF32) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {64, 16}, {65, 17}, {130, 100}}) {
    const int64_t m = 67;
    const auto x = random_floats(m * k, false, 10), weights = random_floats(n * k, false, 11);
    const WeightSource source = {
        WeightFormat::kF32, reinterpret_cast<const std::byte*>(weights.data()), n, k, 0, k * 4};
    const CudaMatrix w = CudaMatrix::load(queue(), {&source, 1}, Precision::kF32);
    const Floats in(queue(), x), out(queue(), std::vector<float>(static_cast<size_t>(m * n)));
    matmul(queue(), matrix(out.data(), m, n), matrix(in.data(), m, k), w);
    expect_product(out.host(), x, weights, m, n, k, kEps);
  }
}

}  // namespace
}  // namespace annulus::kernels
