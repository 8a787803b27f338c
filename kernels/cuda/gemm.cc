// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/gemm.h"

#include <bit>

#include "kernels/core/check.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what Hopper's algorithms ask for at most
constexpr size_t kMostPlans = 4096;

void check_cublas(int status, const char* what) {
  if (status != 0) throw DeviceError(concat("cuBLASLt, ", what, ": status ", status));
}

// Of what an algorithm may assume: the address's, at most cuBLAS's default.
uint32_t alignment_of(const void* data) {
  const int zeros = std::countr_zero(reinterpret_cast<uintptr_t>(data));
  return uint32_t{1} << (zeros < 8 ? zeros : 8);
}

int cublas_type(DType type) {
  return type == DType::kF32 ? kCublasF32 : kCublasBF16;
}

}  // namespace

Gemm::Gemm(const CublasLtApi& api) : api_(api), workspace_(kWorkspaceBytes, " of workspace") {
  check_cublas(api_.create(&handle_), "a handle");
}

Gemm::~Gemm() {
  drop_plans();
  api_.destroy(handle_);
}

void Gemm::drop_plans() {
  for (const auto& [shape, plan] : plans_) {
    for (CublasLayout layout : {plan.w, plan.x, plan.out}) api_.layout_destroy(layout);
    api_.desc_destroy(plan.desc);
  }
  plans_.clear();
}

// cuBLAS counts by columns: rows of ours are columns of its. So out^T [N, M] = w x^T, with w [K, N]
// transposed and x [K, M] as it is: the one form that Hopper's fast kernels take for every type.
Gemm::Plan Gemm::make(const Shape& s) const {
  const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
  Plan plan;
  check_cublas(api_.desc_create(&plan.desc, kCublasCompute32F, kCublasF32), "a description");
  check_cublas(
      api_.desc_set(plan.desc, kCublasDescTransA, &kCublasTranspose, sizeof kCublasTranspose),
      "transposition");
  if (s.type == kCublasF8E4M3) {
    for (const int mode : kCublasDescScaleMode)
      check_cublas(api_.desc_set(plan.desc, mode, &kCublasScaleARow, sizeof kCublasScaleARow),
                   "scales by row");
    const int8_t fast = 1;
    check_cublas(api_.desc_set(plan.desc, kCublasDescFastSums, &fast, sizeof fast), "fast sums");
  }
  check_cublas(api_.layout_create(&plan.w, s.type, size(s.k), size(s.n), s.w_stride), "a layout");
  check_cublas(api_.layout_create(&plan.x, s.type, size(s.k), size(s.m), s.x_stride), "a layout");
  check_cublas(api_.layout_create(&plan.out, kCublasF32, size(s.n), size(s.m), s.out_stride),
               "a layout");
  CublasPreference preference = nullptr;
  check_cublas(api_.preference_create(&preference), "a preference");
  const auto workspace = static_cast<uint64_t>(kWorkspaceBytes);
  check_cublas(
      api_.preference_set(preference, kCublasPreferWorkspace, &workspace, sizeof workspace),
      "the workspace");
  const uint32_t alignments[] = {s.w_alignment, s.x_alignment, s.out_alignment, s.out_alignment};
  for (size_t i = 0; i < 4; ++i) {
    check_cublas(api_.preference_set(preference, kCublasPreferAlignment[i], &alignments[i],
                                     sizeof alignments[i]),
                 "an alignment");
  }
  CublasHeuristic best = {};
  int found = 0;
  const int status = api_.heuristic(handle_, plan.desc, plan.w, plan.x, plan.out, plan.out,
                                    preference, 1, &best, &found);
  plan.possible = status == 0 && found == 1 && best.state == 0;
  plan.algo = best.algo;
  api_.preference_destroy(preference);
  return plan;
}

const Gemm::Plan& Gemm::plan_of(const Shape& shape) {
  auto at = plans_.find(shape);
  if (at == plans_.end()) {
    if (plans_.size() >= kMostPlans) drop_plans();
    at = plans_.emplace(shape, make(shape)).first;
    at->second.number = ++made_;
  }
  return at->second;
}

void Gemm::run(CudaQueue& queue, const Plan& plan, const Operands& of) const {
  if (!queue.enqueues(CudaQueue::Work::kProduct, plan.number, of)) return;
  if (of.w_scales != nullptr) {  // A is w, B is x (make())
    const float* const scales[] = {of.w_scales, of.x_scales};
    for (size_t i = 0; i < 2; ++i)
      check_cublas(api_.desc_set(plan.desc, kCublasDescScale[i], &scales[i], sizeof scales[i]),
                   "scales");
  }
  const float one = 1, zero = 0;
  check_cublas(api_.matmul(handle_, plan.desc, &one, of.w, plan.w, of.x, plan.x, &zero, of.out,
                           plan.out, of.out, plan.out, &plan.algo, workspace_.data(),
                           static_cast<size_t>(kWorkspaceBytes), queue.stream()),
               "a product");
}

bool Gemm::multiply(CudaQueue& queue, Tensor out, ConstTensor x, ConstTensor w) {
  ANNULUS_CHECK(out.dtype == DType::kF32 && x.dtype == w.dtype && x.cols == w.cols &&
                    out.rows == x.rows && out.cols == w.rows,
                out.rows, " x ", out.cols, " = ", x.rows, " x ", x.cols, ", weights ", w.rows,
                " x ", w.cols);
  if (out.rows == 0) return true;
  const Plan& plan =
      plan_of({cublas_type(x.dtype), out.rows, out.cols, x.cols, x.row_stride, w.row_stride,
               out.row_stride, alignment_of(x.data), alignment_of(w.data), alignment_of(out.data)});
  if (!plan.possible) return false;
  run(queue, plan, {w.data, x.data, out.row<float>(0)});
  return true;
}

bool Gemm::multiply(CudaQueue& queue, Tensor out, const F8Rows& x, const F8Rows& w) {
  ANNULUS_CHECK(out.dtype == DType::kF32 && x.cols == w.cols && out.rows == x.rows &&
                    out.cols == w.rows && x.cols % 16 == 0 && w.rows % 16 == 0,
                out.rows, " x ", out.cols, " = ", x.rows, " x ", x.cols, ", F8 weights ", w.rows,
                " x ", w.cols);
  if (out.rows == 0) return true;
  const Plan& plan =
      plan_of({kCublasF8E4M3, out.rows, out.cols, x.cols, x.cols, w.cols, out.row_stride,
               alignment_of(x.codes), alignment_of(w.codes), alignment_of(out.data)});
  if (!plan.possible) return false;
  run(queue, plan, {w.codes, x.codes, out.row<float>(0), w.scales, x.scales});
  return true;
}

}  // namespace annulus::kernels
