// SPDX-License-Identifier: Apache-2.0
// What Gemm asks cuBLASLt for, and when: on the emulated GPU, with the scripted library.
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matrix.h"
#include "kernels/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/gemm_api.h"
#include "tests/kernels/cuda/scripted_cublaslt.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::testing {

absl::StatusOr<const kernels::CublasLtApi*> gemm_api() {
  return &scripted_cublaslt();
}
double f8_unit() {
  return 0x1p-23;  // sums in double precision; scales and their product are rounded
}

namespace {

using namespace kernels;

TEST(GemmScript, AnAlgorithmIsAskedForOnceAShapeAndOursServesWhereThereIsNone) {
  CublasScript& script = cublas_script();
  {
    CudaQueue queue(0);
    queue.use(scripted_cublaslt());
    const int64_t n = 48, k = 64;
    const auto x = random_floats(8 * k, false, 1), weights = random_floats(n * k, false, 2);
    const WeightSource source = {
        WeightFormat::kF32, reinterpret_cast<const std::byte*>(weights.data()), n, k, 0, k * 4};
    const CudaMatrix w = CudaMatrix::load(queue, {&source, 1}, Precision::kDefault);
    const DeviceArray<float> in(queue, x), out(queue, std::vector<float>(8 * n));
    const auto product = [&](int64_t m) {
      matmul(queue, matrix(out.data(), m, n), ConstTensor(matrix(in.data(), m, k)), w);
      return out.host();
    };
    const int products = script.products, heuristics = script.heuristics;
    const std::vector<float> theirs = product(8);
    product(8);
    product(3);
    product(0);
    EXPECT_EQ(script.products - products, 3);
    EXPECT_EQ(script.heuristics - heuristics, 2);
    script.no_algorithm = true;
    const std::vector<float> before = product(5);  // rows of another shape: asked anew
    script.no_algorithm = false;
    EXPECT_EQ(script.products - products, 3);
    for (size_t i = 0; i < 5 * n; ++i) EXPECT_NEAR(before[i], theirs[i], 1e-3);
  }
  EXPECT_EQ(script.live, 0);
}

TEST(CublasLibrary, AMissingOneIsNamed) {
  setenv("ANNULUS_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
  const absl::Status status = load_cublaslt().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("/nowhere/libcublasLt.so.13"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("install cuBLAS"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace annulus::testing
