// SPDX-License-Identifier: Apache-2.0
// Computes  the row loops of row_kernels.h
// Mapping   one row a call, 16 elements at a time, the last ones by partial loads and stores
// Numerics  f32; the mean square of rms_norm is summed over 4 x 16 lanes, rms is a square root and
// a
//           division
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/vec.h"

namespace annulus::kernels::ANNULUS_ISA {
namespace {

// whole(i) for full vectors at i, rest(i, count) for what is left.
template <class Whole, class Rest>
ANNULUS_INLINE void for_lanes(int64_t n, const Whole& whole, const Rest& rest) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) whole(i);
  if (i < n) rest(i, static_cast<int>(n - i));
}

float mean_square(const float* x, int64_t n) {
  Vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    Vec a = load(x + i), b = load(x + i + 16), c = load(x + i + 32), d = load(x + i + 48);
    s0 = fma(a, a, s0);
    s1 = fma(b, b, s1);
    s2 = fma(c, c, s2);
    s3 = fma(d, d, s3);
  }
  for (; i < n; i += kLanes) {
    Vec a = load_n(x + i, n - i < kLanes ? static_cast<int>(n - i) : kLanes);
    s0 = fma(a, a, s0);
  }
  return reduce_add(add(add(s0, s1), add(s2, s3))) / static_cast<float>(n);
}

void rms_norm(float* out, const float* x, const float* weight, float eps, int64_t n) {
  Vec scale = set1(1.0f / __builtin_sqrtf(mean_square(x, n) + eps));
  for_lanes(
      n, [&](int64_t i) { store(out + i, mul(mul(load(x + i), scale), load(weight + i))); },
      [&](int64_t i, int count) {
        Vec y = mul(mul(load_n(x + i, count), scale), load_n(weight + i, count));
        store_n(out + i, y, count);
      });
}

void rope_adjacent(float* x, const float* cos, const float* sin, int64_t n) {
  for_lanes(
      n,
      [&](int64_t i) {
        Vec v = load(x + i);
        store(x + i, fma(v, load(cos + i), mul(swap_neighbours(v), load(sin + i))));
      },
      [&](int64_t i, int count) {
        Vec v = load_n(x + i, count);
        Vec partner = mul(swap_neighbours(v), load_n(sin + i, count));
        store_n(x + i, fma(v, load_n(cos + i, count), partner), count);
      });
}

void rope_halves(float* x, const float* cos, const float* sin, int64_t n) {
  const int64_t half = n / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    int count = half - i < kLanes ? static_cast<int>(half - i) : kLanes;
    Vec a = load_n(x + i, count), b = load_n(x + half + i, count);
    Vec c = load_n(cos + i, count), s = load_n(sin + half + i, count);
    store_n(x + i, sub(mul(a, c), mul(b, s)), count);
    store_n(x + half + i, fma(b, c, mul(a, s)), count);
  }
}

void rope(float* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim,
          bool adjacent) {
  for (int64_t h = 0; h < heads; ++h, x += head_dim)
    if (adjacent)
      rope_adjacent(x, cos, sin, head_dim);
    else
      rope_halves(x, cos, sin, head_dim);
}

void swiglu(float* out, const float* gate, const float* up, int64_t n) {
  for_lanes(
      n, [&](int64_t i) { store(out + i, mul(silu(load(gate + i)), load(up + i))); },
      [&](int64_t i, int count) {
        store_n(out + i, mul(silu(load_n(gate + i, count)), load_n(up + i, count)), count);
      });
}

void add_rows(float* x, const float* y, int64_t n) {
  for_lanes(
      n, [&](int64_t i) { store(x + i, add(load(x + i), load(y + i))); },
      [&](int64_t i, int count) {
        store_n(x + i, add(load_n(x + i, count), load_n(y + i, count)), count);
      });
}

template <class To, class From>
void convert(To* out, const From* x, int64_t n) {
  for_lanes(
      n, [&](int64_t i) { store(out + i, load(x + i)); },
      [&](int64_t i, int count) { store_n(out + i, load_n(x + i, count), count); });
}

}  // namespace

extern constexpr RowKernels kRowKernels = {
    rms_norm, rope, swiglu, add_rows, convert<bf16, float>, convert<float, bf16>};

}  // namespace annulus::kernels::ANNULUS_ISA
