// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/vec.h"
#include "tests/kernels/vec_checks.h"

namespace annulus::kernels::ANNULUS_ISA {
namespace {

void exp_all(const float* x, float* out, int64_t vectors) {
  for (int64_t i = 0; i < vectors; ++i) store(out + 16 * i, exp(load(x + 16 * i)));
}

void arithmetic(const float* pa, const float* pb, const float* pc, float (*out)[16]) {
  Vec a = load(pa), b = load(pb), c = load(pc);
  store(out[0], add(a, b));
  store(out[1], sub(a, b));
  store(out[2], mul(a, b));
  store(out[3], div(a, b));
  store(out[4], fma(a, b, c));
  store(out[5], max(a, b));
  store(out[6], min(a, b));
  store(out[7], swap_neighbours(a));
  store(out[8], set1(pc[3]));
}

void copy_n(const float* from, float* to, int n) {
  store(to, load_n(from, n));
}
void copy_to_n(const float* from, float* to, int n) {
  store_n(to, load(from), n);
}
void copy_bf16_n(const bf16* from, float* to, int n) {
  store(to, load_n(from, n));
}
void round_n(const float* from, bf16* to, int n) {
  if (n == 16)
    store(to, load(from));
  else
    store_n(to, load(from), n);
}
void widen_all(const bf16* from, float* to) {
  store(to, load(from));
}
float sum(const float* x) {
  return reduce_add(load(x));
}
float maximum(const float* x) {
  return reduce_max(load(x));
}

void visible(const int32_t* p, int n, int32_t bound, float* out, bool* any_out, bool* all_out) {
  Mask mask = n == 16 ? less_equal(p, bound) : less_equal_n(p, n, bound);
  mask = both(mask, first_n(n));
  store(out, select(mask, set1(1.0f), zero()));
  *any_out = any(mask);
  *all_out = all(mask);
}

void bytes(const int8_t* from, float* to) {
  store(to, load_i8(from));
}
void halves(const uint16_t* from, float* to) {
  store(to, load_half(from));
}

#if defined(ANNULUS_HAS_BF16_DOT)
void dot(const bf16* a, const bf16* b, const float* acc, float* out) {
  store(out, dot_pairs(load(acc), broadcast_pair(a), load_pairs(b)));
}
#else
constexpr decltype(VecChecks::dot) dot = nullptr;
#endif

}  // namespace

extern constexpr VecChecks kVecChecks = {exp_all, arithmetic, copy_n, copy_to_n, copy_bf16_n,
                                         round_n, widen_all,  sum,    maximum,   visible,
                                         bytes,   halves,     dot};

}  // namespace annulus::kernels::ANNULUS_ISA
