// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>

#include "kernels/core/check.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what Hopper's algorithms ask for at most
constexpr size_t kMostPlans = 4096;                     // then those that were not timed go
constexpr int kOffers = 8;                              // algorithms that are timed
constexpr std::chrono::microseconds kTimed{5000};       // at least, without a break
constexpr int kTimes = 3;

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
  for (const auto& [shape, plan] : plans_) destroy(plan);
  api_.destroy(handle_);
}

void Gemm::drop_plans() {
  for (auto at = plans_.begin(); at != plans_.end();) {
    if (at->second.tuned) {
      ++at;
      continue;
    }
    destroy(at->second);
    at = plans_.erase(at);
  }
}

void Gemm::destroy(const Plan& plan) const {
  for (CublasLayout layout : {plan.w, plan.x, plan.out}) api_.layout_destroy(layout);
  api_.desc_destroy(plan.desc);
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
  std::array<CublasHeuristic, kOffers> offers = {};
  int found = 0;
  const int status =
      api_.heuristic(handle_, plan.desc, plan.w, plan.x, plan.out, plan.out, preference,
                     tuning_ || tuned_ ? kOffers : 1, offers.data(), &found);
  for (int i = 0; status == 0 && i < found; ++i) {
    if (offers[static_cast<size_t>(i)].state == 0)
      plan.offered.push_back(offers[static_cast<size_t>(i)].algo);
  }
  plan.possible = !plan.offered.empty();
  api_.preference_destroy(preference);
  return plan;
}

Gemm::Plan& Gemm::plan_of(const Shape& shape) {
  auto at = plans_.find(shape);
  if (at != plans_.end() && tuning_ && !at->second.tuned) {  // it knows one offer
    destroy(at->second);
    plans_.erase(at);
    at = plans_.end();
  }
  if (at == plans_.end()) {
    if (plans_.size() >= kMostPlans) drop_plans();
    Plan plan = make(shape);
    if (plan.possible) plan.algo = choice(shape, plan);
    plan.number = ++made_;
    at = plans_.emplace(shape, std::move(plan)).first;
  }
  return at->second;
}

CublasAlgo Gemm::choice(const Shape& shape, const Plan& plan) const {
  const auto same = [](const CublasAlgo& a, const CublasAlgo& b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
  };
  const auto distance = [&](const Shape& other) {
    return std::abs(std::log2(static_cast<double>(other.m) / static_cast<double>(shape.m)));
  };
  CublasAlgo out = plan.offered.front();
  double nearest = INFINITY;
  for (const auto& [other, timed] : plans_) {
    const bool alike = other.type == shape.type && other.n == shape.n && other.k == shape.k;
    if (!timed.tuned || !alike || distance(other) >= nearest) continue;
    const auto offered = [&same, &its = timed.algo](const CublasAlgo& algo) {
      return same(algo, its);
    };
    if (std::none_of(plan.offered.begin(), plan.offered.end(), offered)) continue;
    nearest = distance(other);
    out = timed.algo;
  }
  return out;
}

// The least of a few runs, each long enough for the host's clock.
void Gemm::tune(CudaQueue& queue, Plan& plan, const Operands& operands) const {
  using Clock = std::chrono::steady_clock;
  double least = INFINITY;
  CublasAlgo best = plan.algo;
  for (const CublasAlgo& offer : plan.offered) {
    plan.algo = offer;
    int64_t together = 1;
    for (int time = -1; time < kTimes;) {  // the first warms up
      const Clock::time_point began = Clock::now();
      int status = 0;
      for (int64_t i = 0; i < together && status == 0; ++i) status = enqueue(queue, plan, operands);
      queue.finish(began + std::chrono::minutes(1));
      if (status != 0) break;  // offered and refused
      const auto took = Clock::now() - began;
      if (time >= 0 && took < kTimed && together < 4096) {
        together *= 2;
        continue;
      }
      if (time >= 0) {
        const double us =
            std::chrono::duration<double, std::micro>(took).count() / static_cast<double>(together);
        if (us < least) best = offer;
        least = std::min(least, us);
      }
      ++time;
    }
  }
  plan.algo = best;
  plan.tuned = true;
  plan.possible = least < INFINITY;  // else all were refused
}

int Gemm::enqueue(CudaQueue& queue, const Plan& plan, const Operands& of) const {
  const float one = 1, zero = 0;
  return api_.matmul(handle_, plan.desc, &one, of.w, plan.w, of.x, plan.x, &zero, of.out, plan.out,
                     of.out, plan.out, &plan.algo, workspace_.data(),
                     static_cast<size_t>(kWorkspaceBytes), queue.stream());
}

bool Gemm::multiply(CudaQueue& queue, const Shape& shape, const Operands& of) {
  Plan& plan = plan_of(shape);
  if (!plan.possible) return false;
  if (!queue.enqueues(CudaQueue::Work::kProduct, plan.number, of)) return true;
  if (of.w_scales != nullptr) {  // A is w, B is x (make())
    const float* const scales[] = {of.w_scales, of.x_scales};
    for (size_t i = 0; i < 2; ++i)
      check_cublas(api_.desc_set(plan.desc, kCublasDescScale[i], &scales[i], sizeof scales[i]),
                   "scales");
  }
  if (tuning_ && !plan.tuned) {
    tune(queue, plan, of);
    tuned_ = true;
    if (!plan.possible) return false;
  }
  check_cublas(enqueue(queue, plan, of), "a product");
  return true;
}

bool Gemm::multiply(CudaQueue& queue, Tensor out, ConstTensor x, ConstTensor w) {
  ANNULUS_CHECK(out.dtype == DType::kF32 && x.dtype == w.dtype && x.cols == w.cols &&
                    out.rows == x.rows && out.cols == w.rows,
                out.rows, " x ", out.cols, " = ", x.rows, " x ", x.cols, ", weights ", w.rows,
                " x ", w.cols);
  if (out.rows == 0) return true;
  return multiply(
      queue,
      {cublas_type(x.dtype), out.rows, out.cols, x.cols, x.row_stride, w.row_stride, out.row_stride,
       alignment_of(x.data), alignment_of(w.data), alignment_of(out.data)},
      {w.data, x.data, out.row<float>(0)});
}

bool Gemm::multiply(CudaQueue& queue, Tensor out, const F8Rows& x, const F8Rows& w) {
  ANNULUS_CHECK(out.dtype == DType::kF32 && x.cols == w.cols && out.rows == x.rows &&
                    out.cols == w.rows && x.cols % 16 == 0 && w.rows % 16 == 0,
                out.rows, " x ", out.cols, " = ", x.rows, " x ", x.cols, ", F8 weights ", w.rows,
                " x ", w.cols);
  if (out.rows == 0) return true;
  return multiply(queue,
                  {kCublasF8E4M3, out.rows, out.cols, x.cols, x.cols, w.cols, out.row_stride,
                   alignment_of(x.codes), alignment_of(w.codes), alignment_of(out.data)},
                  {w.codes, x.codes, out.row<float>(0), w.scales, x.scales});
}

}  // namespace annulus::kernels
