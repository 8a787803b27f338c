// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels/cuda/scripted_cublaslt.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"

namespace annulus::kernels {
struct CublasLtContext {};
struct CublasLtLayoutOpaque {
  int type;
  int64_t rows, cols, ld;
};
struct CublasLtDescOpaque {
  bool transpose_a = false, fast_sums = false;
  int scale_modes[2] = {0, 0};
  const float* scales[2] = {nullptr, nullptr};
};
struct CublasLtPreferenceOpaque {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};
};
}  // namespace annulus::kernels

namespace annulus::testing {
namespace {

using namespace kernels;

constexpr uint64_t kMark = 0x616c676f;  // an algorithm that the heuristic gave

template <class Object>
int create(Object** out, Object value) {
  ++cublas_script().live;
  *out = new Object(value);
  return 0;
}
template <class Object>
int destroy(Object* object) {
  --cublas_script().live;
  delete object;
  return 0;
}

int create_handle(CublasHandle* handle) {
  return create(handle, {});
}
int desc_create(CublasDesc* desc, int compute, int scale_type) {
  ANNULUS_CHECK(compute == kCublasCompute32F && scale_type == kCublasF32, compute);
  return create(desc, {});
}
int desc_set(CublasDesc desc, int attribute, const void* value, size_t bytes) {
  for (size_t i = 0; i < 2; ++i) {
    if (attribute == kCublasDescScaleMode[i]) {
      ANNULUS_CHECK(bytes == 4, bytes);
      desc->scale_modes[i] = *static_cast<const int32_t*>(value);
      return 0;
    }
    if (attribute == kCublasDescScale[i]) {
      ANNULUS_CHECK(bytes == sizeof(void*), bytes);
      desc->scales[i] = *static_cast<const float* const*>(value);
      return 0;
    }
  }
  if (attribute == kCublasDescFastSums) {
    ANNULUS_CHECK(bytes == 1, bytes);
    desc->fast_sums = *static_cast<const int8_t*>(value) != 0;
    return 0;
  }
  ANNULUS_CHECK(attribute == kCublasDescTransA && bytes == 4, attribute);
  desc->transpose_a = *static_cast<const int32_t*>(value) == kCublasTranspose;
  return 0;
}
int layout_create(CublasLayout* layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  ANNULUS_CHECK(ld >= static_cast<int64_t>(rows), "a leading dimension of ", ld, " for ", rows);
  return create(layout, {type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), ld});
}
int preference_create(CublasPreference* preference) {
  return create(preference, {});
}
int preference_set(CublasPreference preference, int attribute, const void* value, size_t bytes) {
  if (attribute == kCublasPreferWorkspace) {
    ANNULUS_CHECK(bytes == 8, bytes);
    preference->workspace = *static_cast<const uint64_t*>(value);
    return 0;
  }
  const int operand = attribute - kCublasPreferAlignment[0];
  ANNULUS_CHECK(operand >= 0 && operand < 4 && bytes == 4, attribute);
  preference->alignment[operand] = *static_cast<const uint32_t*>(value);
  return 0;
}
int heuristic(CublasHandle, CublasDesc desc, CublasLayout a, CublasLayout b, CublasLayout c,
              CublasLayout d, CublasPreference preference, int wanted, CublasHeuristic* results,
              int* found) {
  ++cublas_script().heuristics;
  ANNULUS_CHECK(wanted >= 1 && desc->transpose_a && a->rows == b->rows && a->cols == d->rows &&
                    b->cols == d->cols && c->type == d->type && a->type == b->type,
                "operands that do not fit");
  if (a->type == kCublasF8E4M3) {  // the rules of OUTER_VEC_32F
    for (const int mode : desc->scale_modes) ANNULUS_CHECK(mode == kCublasScaleARow, mode);
    for (const int64_t unit : {a->rows, a->cols, a->ld, b->ld})
      ANNULUS_CHECK(unit % 16 == 0, unit, " is no multiple of 16");
    for (const uint32_t alignment : preference->alignment)
      ANNULUS_CHECK(alignment % 16 == 0, "operands aligned to ", alignment);
  }
  const auto offers = static_cast<int>(cublas_script().delays_ms.size());
  *found = cublas_script().no_algorithm ? 0 : std::min(wanted, offers);
  for (int n = 0; n < *found; ++n) {
    CublasHeuristic& result = results[n];
    result = {};
    // What the pointers must keep to is remembered in the algorithm.
    result.algo.data[0] = kMark;
    for (size_t i = 0; i < 4; ++i) result.algo.data[1 + i] = preference->alignment[i];
    result.algo.data[5] = static_cast<uint64_t>(n);
    result.workspace_bytes = preference->workspace;
  }
  return 0;
}

double element(const void* data, const CublasLayout layout, int64_t row, int64_t col) {
  const int64_t at = col * layout->ld + row;
  if (layout->type == kCublasF32) return static_cast<const float*>(data)[at];
  if (layout->type == kCublasF8E4M3) return f8_e4m3_to_float(static_cast<const uint8_t*>(data)[at]);
  ANNULUS_CHECK(layout->type == kCublasBF16, layout->type);
  return to_float(static_cast<const bf16*>(data)[at]);
}

int matmul(CublasHandle, CublasDesc desc, const void* alpha, const void* a, CublasLayout a_layout,
           const void* b, CublasLayout b_layout, const void* beta, const void*, CublasLayout,
           void* d, CublasLayout d_layout, const CublasAlgo* algo, void* workspace, size_t,
           cudaStream_t stream) {
  ++cublas_script().products;
  ANNULUS_CHECK(*static_cast<const float*>(alpha) == 1 && *static_cast<const float*>(beta) == 0 &&
                    d_layout->type == kCublasF32 && workspace != nullptr,
                "factors or types");
  const void* const operands[] = {a, b, d, d};
  ANNULUS_CHECK(algo->data[0] == kMark, "an algorithm from nowhere");
  for (size_t i = 0; i < 4; ++i) {
    ANNULUS_CHECK(reinterpret_cast<uintptr_t>(operands[i]) % algo->data[1 + i] == 0, "operand ", i,
                  " is not aligned to ", algo->data[1 + i]);
  }
  const auto number = static_cast<size_t>(algo->data[5]);
  const int delay_ms = cublas_script().delays_ms.at(number);
  if (delay_ms < 0) return 15;  // CUBLAS_STATUS_NOT_SUPPORTED
  ++cublas_script().runs[static_cast<int>(number)];
  const bool scaled = a_layout->type == kCublasF8E4M3;
  ANNULUS_CHECK(scaled == (desc->scales[0] != nullptr) && scaled == (desc->scales[1] != nullptr),
                "scales of type ", a_layout->type);
  // Layouts and the description may be gone when the stream runs.
  cuda_emulation::enqueue(stream, [a, b, d, al = *a_layout, bl = *b_layout, dl = *d_layout,
                                   desc = *desc, scaled, delay_ms] {
    if (delay_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
    for (int64_t col = 0; col < dl.cols; ++col) {
      for (int64_t row = 0; row < dl.rows; ++row) {
        double sum = 0;
        for (int64_t k = 0; k < al.rows; ++k) {
          auto copy_a = al;
          auto copy_b = bl;
          sum += element(a, &copy_a, k, row) * element(b, &copy_b, k, col);
        }
        if (scaled) sum *= double{desc.scales[0][row]} * double{desc.scales[1][col]};
        static_cast<float*>(d)[col * dl.ld + row] = static_cast<float>(sum);
      }
    }
  });
  return 0;
}

}  // namespace

CublasScript& cublas_script() {
  static CublasScript script;
  return script;
}

const kernels::CublasLtApi& scripted_cublaslt() {
  static const kernels::CublasLtApi api = {create_handle,
                                           destroy<CublasLtContext>,
                                           desc_create,
                                           destroy<CublasLtDescOpaque>,
                                           desc_set,
                                           layout_create,
                                           destroy<CublasLtLayoutOpaque>,
                                           preference_create,
                                           destroy<CublasLtPreferenceOpaque>,
                                           preference_set,
                                           heuristic,
                                           matmul};
  return api;
}

}  // namespace annulus::testing
