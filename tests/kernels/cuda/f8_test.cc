// SPDX-License-Identifier: Apache-2.0
// F8 on the GPU: inputs rounded with a scale a row, products by our kernel and by cuBLASLt (the
// real one or the scripted one), tables; and that norm and SwiGLU write the bits that rounding
// afterwards gives. What is nearest is searched among all codes.
#include "kernels/cuda/f8.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/matrix.h"
#include "kernels/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/gemm_api.h"
#include "tests/kernels/cuda/product_bound.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What a row of x is as F8: scale * nearest, ties to the even code.
std::vector<float> nearest_f8(std::vector<float> x, int64_t cols, float bound) {
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(cols)) {
    const std::span<float> row(x.data() + first, static_cast<size_t>(cols));
    float largest = 0;
    for (const float v : row) largest = std::max(largest, std::abs(v));
    const float scale = largest > 0 ? std::min(largest, bound) / 448 : 1;
    for (float& v : row) {
      const double size = std::abs(double{v / scale});
      int best = 0;
      for (int code = 1; code < 0x7f; ++code) {
        const double now = std::abs(f8_e4m3_to_float(static_cast<uint8_t>(code)) - size);
        const double before = std::abs(f8_e4m3_to_float(static_cast<uint8_t>(best)) - size);
        if (now < before || (now == before && code % 2 == 0)) best = code;
      }
      v = std::copysign(scale * f8_e4m3_to_float(static_cast<uint8_t>(best)), v);
    }
  }
  return x;
}

// Weights as an fbgemm_fp8 checkpoint has them.
struct F8Weights {
  F8Weights(int64_t rows, int64_t cols, uint32_t seed, float bound)
      : codes(WeightFormat::kF8E4M3, rows, cols, false, seed),
        scales(random_floats(rows, false, seed + 1)) {
    for (float& scale : scales) scale = 0.01f + std::abs(scale);
    source = codes.source();
    source.row_scales = reinterpret_cast<const std::byte*>(scales.data());
    source.input_bound = bound;
  }
  std::vector<float> values() const {
    std::vector<float> all(static_cast<size_t>(codes.rows * codes.cols));
    for (int64_t r = 0; r < codes.rows; ++r) dequantise_row(source, r, all.data() + r * codes.cols);
    return all;
  }
  WeightProblem codes;
  std::vector<float> scales;
  WeightSource source;
};

class CudaF8 : public CudaTest {};

TEST_F(CudaF8, RowsAreRoundedToTheNearestOfTheirScale) {
  const int64_t rows = 5, cols = 1028;
  std::vector<float> x = random_floats(rows * cols, false, 3);
  std::fill_n(x.begin() + cols, cols, 0.0f);  // a row of zeros
  for (int64_t i = 0; i < cols; ++i)          // from 448 down into the subnormals
    x[static_cast<size_t>(2 * cols + i)] =
        std::ldexp(448.0f - static_cast<float>(i % 64) / 2, static_cast<int>(-i / 40));
  x[3 * cols + 7] = 1e30f;  // cut off by the bound
  for (const float bound : {kInfinity, 2.0f}) {
    const DeviceArray<float> in(queue(), x);
    const CudaQueue::Mark mark(queue());
    const F8Rows got = to_f8_rows(queue(), ConstTensor(matrix(in.data(), rows, cols)), bound);
    std::vector<uint8_t> codes(static_cast<size_t>(rows * cols));
    std::vector<float> scales(rows);
    queue().download(std::span(codes), got.codes);
    queue().download(std::span(scales), got.scales);
    queue().finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
    const std::vector<float> want = nearest_f8(x, cols, bound);
    for (size_t i = 0; i < codes.size(); ++i)
      ASSERT_EQ(scales[i / cols] * f8_e4m3_to_float(codes[i]), want[i]) << i << " of " << x[i];
  }
}

TEST_F(CudaF8, ProductsOfOursAndOfCublas) {
  const auto api = annulus::testing::gemm_api();
  for (const bool cublas : {false, true}) {
    if (cublas && !api.ok()) GTEST_SKIP() << api.status();
    if (cublas) queue().use(**api);
    for (const auto& [m, n, k] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 64, 96}, {17, 48, 64}, {67, 144, 112}}) {
      for (const float bound : {kInfinity, 0.5f}) {
        // Two sources, as gate and up are.
        const F8Weights first(16, k, 20, bound), second(n - 16, k, 30, bound);
        const WeightSource sources[] = {first.source, second.source};
        const CudaMatrix w = CudaMatrix::load(queue(), sources, Precision::kDefault);
        ASSERT_EQ(w.format(), WeightFormat::kF8E4M3);
        EXPECT_EQ(w.bytes(), n * k + n * 4);
        std::vector<float> weights = first.values();
        const std::vector<float> rest = second.values();
        weights.insert(weights.end(), rest.begin(), rest.end());
        const std::vector<float> x = random_floats(m * k, false, 7);
        const DeviceArray<float> in(queue(), x);
        const DeviceArray<float> out(queue(), std::vector<float>(static_cast<size_t>(m * n), 7));
        matmul(queue(), matrix(out.data(), m, n), ConstTensor(matrix(in.data(), m, k)), w);
        expect_product(out.host(), nearest_f8(x, k, bound), weights, m, n, k,
                       cublas ? annulus::testing::f8_unit() : 0x1p-23);
      }
    }
  }
}

// What a matrix's input holds, F8 or bf16 (codes and scales), or what `x` becomes for it.
struct Rounded {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  bool operator==(const Rounded&) const = default;
};

class CudaInputs : public CudaF8 {
 protected:
  Rounded read(const ConstCudaInput& in) {
    const auto size = static_cast<size_t>(in.rows() * in.cols());
    Rounded out;
    if (in.is_f8()) {
      out = {std::vector<uint8_t>(size), std::vector<float>(static_cast<size_t>(in.rows()))};
      queue().download(std::span(out.codes), in.f8.codes);
      queue().download(std::span(out.scales), in.f8.scales);
    } else {
      EXPECT_EQ(in.tensor.dtype, DType::kBF16);
      out.codes.resize(2 * size);
      queue().download(std::span(out.codes), in.tensor.row<const uint8_t>(0));
    }
    queue().finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
    return out;
  }
  Rounded round(ConstTensor x, const CudaMatrix& w) {
    const CudaQueue::Mark mark(queue());
    if (w.format() == WeightFormat::kF8E4M3) return read(to_f8_rows(queue(), x, w.input_bound()));
    const Tensor out = {queue().scratch<bf16>(x.rows * x.cols), DType::kBF16, x.rows, x.cols,
                        x.cols};
    convert(queue(), out, x);
    return read(CudaInput(out));
  }
  // write(input) puts rows of k into what w reads of them.
  template <class Write>
  void expect_as_rounded_afterwards(const CudaMatrix& w, int64_t rows, const Write& write) {
    const int64_t k = w.k(), n = w.n();
    const std::vector<float> nothing(static_cast<size_t>(rows * k), 7);
    const DeviceArray<float> plain(queue(), nothing), room(queue(), nothing);
    const Tensor x = matrix(plain.data(), rows, k);
    write(CudaInput(x));
    const CudaInput in = w.input(matrix(room.data(), rows, k));
    write(in);
    EXPECT_EQ(read(in), round(x, w));
    const DeviceArray<float> a(queue(), std::vector<float>(static_cast<size_t>(rows * n)));
    const DeviceArray<float> b(queue(), std::vector<float>(static_cast<size_t>(rows * n)));
    matmul(queue(), matrix(a.data(), rows, n), x, w);
    matmul(queue(), matrix(b.data(), rows, n), in, w);
    const std::vector<float> want = a.host(), got = b.host();
    EXPECT_EQ(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)), 0);
  }
};

TEST_F(CudaInputs, NormAndSwigluWriteTheBitsOfRoundingAfterwards) {
  for (const int64_t k : {16, 288, 2064})
    for (const int64_t rows : {1, 6})
      for (const float bound : {kInfinity, 0.7f}) {
        SCOPED_TRACE("k " + std::to_string(k) + ", rows " + std::to_string(rows));
        const F8Weights f8(16, k, 9, bound);
        const WeightProblem wide(WeightFormat::kBF16, 16, k, false, 6);
        const WeightSource bf16_source = wide.source();
        std::vector<float> x = random_floats(rows * 2 * k, false, 11);
        if (rows > 1) {
          std::fill_n(x.begin() + 2 * k, 2 * k, 0.0f);        // a row of zeros
          x[static_cast<size_t>(4 * k)] = 3e5f;               // cut off by the bound
          x[static_cast<size_t>(6 * k + 1)] = std::nanf("");  // stays one
          for (int64_t i = 0; i < 2 * k; ++i) x[static_cast<size_t>(8 * k + i)] *= 1e-30f;
        }
        const DeviceArray<float> in(queue(), x), norm(queue(), random_floats(k, false, 12));
        for (const WeightSource& source : {f8.source, bf16_source}) {
          const CudaMatrix w = CudaMatrix::load(queue(), {&source, 1}, Precision::kDefault);
          expect_as_rounded_afterwards(w, rows, [&](const CudaInput& out) {
            rms_norm(queue(), out, ConstTensor{in.data(), DType::kF32, rows, k, 2 * k}, norm.data(),
                     1e-5f);
          });
          expect_as_rounded_afterwards(w, rows, [&](const CudaInput& out) {
            swiglu(queue(), out, matrix(in.data(), rows, 2 * k));
          });
        }
      }
}

TEST_F(CudaF8, ATableIsLookedUp) {
  const int64_t rows = 32, cols = 48;
  const F8Weights table(rows, cols, 5, kInfinity);
  const CudaMatrix held = CudaMatrix::load(queue(), {&table.source, 1}, Precision::kDefault);
  ASSERT_EQ(held.format(), WeightFormat::kF8E4M3);
  const std::vector<int32_t> ids = {31, 0, 7};
  const DeviceArray<float> out(queue(), std::vector<float>(3 * cols));
  const CudaQueue::Mark mark(queue());
  embed(queue(), matrix(out.data(), 3, cols), held.rows(),
        queue().upload(std::span<const int32_t>(ids)));
  const std::vector<float> got = out.host(), values = table.values();
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_EQ(got[i], values[static_cast<size_t>(ids[i / cols] * cols) + i % cols]);
}

TEST(FormatOnGpu, F8OnlyWhereTensorCoresMultiplyIt) {
  const F8Weights a(16, 64, 1, 2.0f), b(32, 64, 2, 2.0f), other_bound(16, 64, 3, 3.0f);
  const F8Weights odd_rows(8, 64, 4, 2.0f), odd_cols(16, 56, 5, 2.0f);
  const auto format = [](std::vector<WeightSource> sources, Precision precision) {
    return format_on_gpu(sources, precision);
  };
  EXPECT_EQ(format({a.source, b.source}, Precision::kDefault), WeightFormat::kF8E4M3);
  EXPECT_EQ(format({a.source, b.source}, Precision::kF32), WeightFormat::kF32);
  EXPECT_EQ(format({a.source, other_bound.source}, Precision::kDefault), WeightFormat::kBF16);
  EXPECT_EQ(format({a.source, odd_rows.source}, Precision::kDefault), WeightFormat::kBF16);
  EXPECT_EQ(format({odd_cols.source}, Precision::kDefault), WeightFormat::kBF16);
  const WeightProblem bf16(WeightFormat::kBF16, 16, 64, false, 6);
  EXPECT_EQ(format({a.source, bf16.source()}, Precision::kDefault), WeightFormat::kBF16);
}

}  // namespace
}  // namespace annulus::kernels
