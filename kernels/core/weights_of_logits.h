// SPDX-License-Identifier: Apache-2.0
// The arithmetic of sampling, for CPUs and GPUs alike: a candidate's weight e^((logit - best) / T)
// as an integer, the order of candidates as a number, and the two thresholds that are derived from
// sums of weights. PURE; the same bits everywhere, provided that the compiler does not fuse
// products and sums (-ffp-contract=off, -fmad=false where this is included).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace annulus::kernels {

// The best candidate weighs 2^shift: the more the fewer candidates there are, so that all together
// weigh less than 2^63. Rounding a weight errs by 2^-(shift + 1) of the best one's, all together by
// candidates times that (128,256: shift 46, below 10^-9; 2^20: 1.2 x 10^-7).
constexpr int weight_shift(int32_t vocab) {
  return std::min(50, 63 - static_cast<int>(std::bit_width(static_cast<uint32_t>(vocab))));
}

// 2^shift * e^x for x <= 0 and NaN (which gives 0), shift <= 50, relative error below 1e-8 before
// it is rounded; our own so that loops over a vocabulary vectorise and every machine rounds alike.
// 2^(n + shift) is built in the exponent bits, with n rounded by adding 1.5 * 2^52; the rest
// |r| <= ln(2)/2 goes into its Taylor series; adding 2^52 rounds to an integer, in the low bits.
// kBiasOfWeight above the weight: a loop takes it off its sum, once.
inline constexpr uint64_t kBiasOfWeight = std::bit_cast<uint64_t>(0x1p52);
constexpr uint64_t biased_weight_of(double x, int shift) {
  constexpr double kLog2e = 1.4426950408889634, kRound = 6755399441055744.0;
  constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
  const double bounded = x > -700.0 ? x : -700.0;
  const double shifted = bounded * kLog2e + kRound;
  const double n = shifted - kRound;
  const double r = (bounded - n * kLn2High) - n * kLn2Low;
  double p = 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1;
  p = p * r + 1;
  const uint64_t exponent = std::bit_cast<uint64_t>(shifted) + 1023 + static_cast<uint64_t>(shift);
  const double weight = p * std::bit_cast<double>(exponent << 52);
  return std::bit_cast<uint64_t>(weight + 0x1p52);
}
constexpr uint64_t weight_of(double x, int shift) {
  return biased_weight_of(x, shift) - kBiasOfWeight;
}

constexpr float cleaned(float logit) {
  return logit == logit ? logit : -std::numeric_limits<float>::infinity();
}

// Of one candidate of a row whose best is `best`.
constexpr uint64_t weight_of(float logit, float best, double inverse_temperature, int shift) {
  const float x = cleaned(logit);
  if (x == best) return uint64_t{1} << shift;  // infinities too
  return weight_of((double{x} - double{best}) * inverse_temperature, shift);
}

// Better candidates have smaller numbers; equal logits, the zeros too, have equal ones.
constexpr uint32_t order_of(float logit) {
  const float x = cleaned(logit);
  const uint32_t bits = std::bit_cast<uint32_t>(x == 0 ? 0.0f : x);
  return bits >> 31 != 0 ? bits : ~bits & 0x7fffffffu;
}
constexpr float logit_of(uint32_t order) {
  return std::bit_cast<float>(order >> 31 != 0 ? order : ~order & 0x7fffffffu);
}

// a * b / 2^64, rounded down.
constexpr uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a_low = a & 0xffffffffu, a_high = a >> 32;
  const uint64_t b_low = b & 0xffffffffu, b_high = b >> 32;
  const uint64_t middle = a_high * b_low + (a_low * b_low >> 32);
  const uint64_t other = a_low * b_high + (middle & 0xffffffffu);
  return a_high * b_high + (middle >> 32) + (other >> 32);
}

// What candidates that pass top-p hold at least: top_p of `total`, and something.
constexpr uint64_t held_by_top_p(float top_p, uint64_t total) {
  return std::max(uint64_t{1}, static_cast<uint64_t>(double{top_p} * static_cast<double>(total)));
}
constexpr bool fails_min_p(uint64_t weight, float min_p, int shift) {
  return static_cast<double>(weight) < double{min_p} * static_cast<double>(uint64_t{1} << shift);
}

}  // namespace annulus::kernels
