// SPDX-License-Identifier: Apache-2.0
// Products by cuBLASLt, the real one on a GPU or the scripted one on the emulated GPU, against
// double precision.
#include "kernels/cuda/gemm.h"

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

constexpr double kEps = 0x1p-24;

class CudaGemm : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const auto api = annulus::testing::gemm_api();
    if (!api.ok()) GTEST_SKIP() << api.status();
    queue().use(**api);
  }
  // out[m, n] with rows `gap` elements further apart than needed, as matmul gives it.
  std::vector<float> product(const CudaMatrix& w, const std::vector<float>& x, int64_t m,
                             int64_t gap) {
    const int64_t k = w.k(), n = w.n();
    std::vector<float> wide(static_cast<size_t>(m * (k + gap)), 1e9f);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t i = 0; i < k; ++i)
        wide[static_cast<size_t>(r * (k + gap) + i)] = x[static_cast<size_t>(r * k + i)];
    const DeviceArray<float> in(queue(), wide);
    const DeviceArray<float> out(queue(),
                                 std::vector<float>(static_cast<size_t>(m * (n + gap)), 7));
    const Tensor to = {out.data(), DType::kF32, m, n, n + gap};
    matmul(queue(), to, ConstTensor{in.data(), DType::kF32, m, k, k + gap}, w);
    const std::vector<float> all = out.host();
    std::vector<float> got;
    for (int64_t r = 0; r < m; ++r) {
      const auto row = all.begin() + r * (n + gap);
      got.insert(got.end(), row, row + n);
      for (int64_t i = n; i < n + gap; ++i) EXPECT_EQ(row[i], 7) << "written past a row";
    }
    return got;
  }
};

TEST_F(CudaGemm, ProductsOfBothPrecisions) {
  for (const Precision precision : {Precision::kF32, Precision::kDefault}) {
    const bool rounds = precision == Precision::kDefault;
    for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{1, 64, 96},
                                  {5, 48, 64},
                                  {67, 130, 104},
                                  {2, 3, 8}}) {
      for (const int64_t gap : {0, 8}) {
        auto x = random_floats(m * k, false, 20), weights = random_floats(n * k, false, 21);
        const WeightSource source = {
            WeightFormat::kF32, reinterpret_cast<const std::byte*>(weights.data()), n, k, 0, k * 4};
        const CudaMatrix w = CudaMatrix::load(queue(), {&source, 1}, precision);
        const std::vector<float> got = product(w, x, m, gap);
        if (rounds) {  // what the tensor cores read
          for (float& v : x) v = to_float(to_bf16(v));
          for (float& v : weights) v = to_float(to_bf16(v));
        }
        // Tensor cores keep two bits less of a sum.
        SCOPED_TRACE("gap " + std::to_string(gap));
        expect_product(got, x, weights, m, n, k, (rounds ? 4 : 1) * kEps);
      }
    }
  }
}

}  // namespace
}  // namespace annulus::kernels
