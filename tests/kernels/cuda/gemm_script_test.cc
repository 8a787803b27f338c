// SPDX-License-Identifier: Apache-2.0
// What Gemm asks cuBLASLt for, and when: on the emulated GPU, with the scripted library.
#include <gtest/gtest.h>

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

// The fastest of what is offered, found by timing, serves its shape, and others of the same matrix
// to which it is offered. What is refused when it runs is passed over.
TEST(GemmScript, TheFastestIsKept) {
  CublasScript& script = cublas_script();
  script.delays_ms = {3, -1, 6, 1, 3};
  {
    CudaQueue queue(0);
    queue.use(scripted_cublaslt());
    const int64_t n = 48, k = 64;
    const auto x = random_floats(8 * k, false, 1);
    const WeightProblem problem(WeightFormat::kBF16, n, k, false, 2);
    const WeightSource source = problem.source();
    const CudaMatrix w = CudaMatrix::load(queue, {&source, 1}, Precision::kDefault);
    const DeviceArray<float> in(queue, x), out(queue, std::vector<float>(8 * n));
    const auto by = [&](int64_t m) {  // which algorithm ran last
      script.runs.clear();
      matmul(queue, matrix(out.data(), m, n), ConstTensor(matrix(in.data(), m, k)), w);
      const std::vector<float> result = out.host();
      EXPECT_EQ(script.runs.size(), 1u);
      return script.runs.begin()->first;
    };
    EXPECT_EQ(by(8), 0);
    EXPECT_EQ(by(2), 0);
    const std::vector<float> before = out.host();
    queue.gemm()->set_tuning(true);
    script.runs.clear();
    matmul(queue, matrix(out.data(), 8, n), ConstTensor(matrix(in.data(), 8, k)), w);
    EXPECT_EQ(script.runs.size(), 4u) << "all but the one that is refused";
    queue.gemm()->set_tuning(false);
    EXPECT_EQ(by(8), 3);
    EXPECT_EQ(by(5), 3) << "not timed, of the same matrix";
    EXPECT_EQ(by(2), 0) << "asked for before";
    const std::vector<float> after = out.host();
    for (size_t i = 0; i < static_cast<size_t>(2 * n); ++i) EXPECT_EQ(before[i], after[i]);
    script.delays_ms = {3, 3};
    EXPECT_EQ(by(7), 0) << "it is not offered";
  }
  script.delays_ms = {0};
  EXPECT_EQ(script.live, 0);
}

// A feed-forward of F8 or bf16: nothing but norm, SwiGLU and the sums' kernels is launched where
// they write what the matrices read, one launch more for each where they write f32.
TEST(GemmScript, RowsThatAMatrixReadsAreRoundedWhereTheyAreWritten) {
  CudaQueue queue(0);
  queue.use(scripted_cublaslt());
  const int64_t rows = 3, dim = 32, ffn = 48;
  for (const WeightFormat format : {WeightFormat::kF8E4M3, WeightFormat::kBF16}) {
    const WeightProblem up(format, 2 * ffn, dim, false, 1), down(format, dim, ffn, false, 2);
    const WeightSource sources[] = {up.source(), down.source()};
    const CudaMatrix w_up = CudaMatrix::load(queue, {&sources[0], 1}, Precision::kDefault);
    const CudaMatrix w_down = CudaMatrix::load(queue, {&sources[1], 1}, Precision::kDefault);
    ASSERT_EQ(w_up.format(), format);
    const auto zeros = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
    const DeviceArray<float> x(queue, random_floats(rows * dim, false, 3)),
        norm(queue, random_floats(dim, false, 4)), normed(queue, zeros(rows * dim)),
        gate_up(queue, zeros(rows * 2 * ffn)), hidden(queue, zeros(rows * ffn)),
        out(queue, zeros(rows * dim));
    std::vector<float> results[2];
    for (const bool asked : {false, true}) {
      const Tensor f32[] = {matrix(normed.data(), rows, dim), matrix(hidden.data(), rows, ffn)};
      const CudaInput up_in = asked ? w_up.input(f32[0]) : f32[0];
      const CudaInput down_in = asked ? w_down.input(f32[1]) : f32[1];
      const int64_t before = cuda_emulation::launches;
      const int products = cublas_script().products;
      rms_norm(queue, up_in, matrix(x.data(), rows, dim), norm.data(), 1e-5f);
      matmul(queue, matrix(gate_up.data(), rows, 2 * ffn), up_in, w_up);
      swiglu(queue, down_in, matrix(gate_up.data(), rows, 2 * ffn));
      matmul(queue, matrix(out.data(), rows, dim), down_in, w_down);
      EXPECT_EQ(cuda_emulation::launches - before, asked ? 2 : 4);
      EXPECT_EQ(cublas_script().products - products, 2);
      results[asked ? 1 : 0] = out.host();
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

}  // namespace
}  // namespace annulus::testing
