// SPDX-License-Identifier: Apache-2.0
#include "bench/peaks_kernels.h"
#include "kernels/cpu/amx.h"
#include "kernels/cpu/vec.h"

namespace annulus::kernels::ANNULUS_ISA {
namespace {

// Independent sums: enough to hide the latency of a multiply-add, few enough to stay in registers.
#if defined(__AVX512F__)
constexpr int kSums = 24;
#elif defined(__AVX2__)
constexpr int kSums = 6;
#else
constexpr int kSums = 2;
#endif

template <class Step>
ANNULUS_INLINE void repeat(float* x, int64_t iterations, const Step& step) {
  Vec sums[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sums[i] = set1(x[i]);  // were they equal, one would do
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = step(sums[i]);
  }
  Vec total = zero();
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) total = add(total, sums[i]);
  store(x, total);
}

void fma_loop(float* x, int64_t iterations) {
  Vec a = load(x), b = load(x + 16);
  repeat(
      x, iterations, [&](Vec sum) __attribute__((always_inline)) { return fma(a, b, sum); });
}

#if defined(ANNULUS_HAS_AMX)
// Four tiles of sums, in turn; an iteration is two products.
void dot_loop(float* x, int64_t iterations) {
  static constexpr TileConfig kConfig = tile_config(kAmxRows);
  alignas(64) float sums[kAmxRows * 16], a[kAmxRows * 16];
  for (float& value : a) value = x[0];
  tile_fence();
  _tile_loadconfig(&kConfig);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, a, 64);
  _tile_loadd(5, a, 64);
  for (int64_t n = 0; n < iterations; n += 2) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, sums, 64);
  _tile_release();
  tile_fence();
  x[0] += sums[0];
}
constexpr double kDotFlops = 2.0 * 2 * kAmxRows * kAmxOutputs * kAmxInputs;
#elif defined(ANNULUS_HAS_BF16_DOT)
void dot_loop(float* x, int64_t iterations) {
  Pairs a = load_pairs(reinterpret_cast<const bf16*>(x));
  Pairs b = load_pairs(reinterpret_cast<const bf16*>(x + 16));
  repeat(
      x, iterations, [&](Vec sum) __attribute__((always_inline)) { return dot_pairs(sum, a, b); });
}
constexpr double kDotFlops = kSums * 64;
#else
constexpr decltype(PeakKernels::dot) dot_loop = nullptr;
constexpr double kDotFlops = 0;
#endif

float read_all(const float* p, int64_t count) {
  Vec sums[8];
  for (int i = 0; i < 8; ++i) sums[i] = zero();
  for (int64_t at = 0; at < count; at += 128) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] = add(sums[i], load(p + at + 16 * i));
  }
  for (int i = 1; i < 8; ++i) sums[0] = add(sums[0], sums[i]);
  return reduce_add(sums[0]);
}

}  // namespace

extern constexpr PeakKernels kPeakKernels = {kSums * 32, kDotFlops, fma_loop, dot_loop, read_all};

}  // namespace annulus::kernels::ANNULUS_ISA
