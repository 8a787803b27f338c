// SPDX-License-Identifier: Apache-2.0
#include "tests/support/encode_weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"
#include "tests/support/bytes.h"

namespace annulus::testing {
namespace {

using kernels::WeightFormat;

// Round to nearest even; overflow becomes infinity.
uint16_t to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00u);
  // The rounding of the adder does the work: the sum's last bit is that of the half.
  const int exponent = std::max(std::ilogb(magnitude == 0 ? 0x1p-24f : magnitude), -14);
  const float unit = std::ldexp(1.0f, exponent - 10);
  const float steps = std::nearbyint(magnitude / unit);  // exact division by a power of two
  const uint32_t rounded =
      (static_cast<uint32_t>(exponent + 14) << 10) + static_cast<uint32_t>(steps);
  return static_cast<uint16_t>(sign | rounded);
}

float half_of(float value) {
  return kernels::half_to_float(to_half(value));
}

// The nearest, ties to even; above 448 the largest.
uint8_t to_f8_e4m3(float value) {
  const float magnitude = std::fabs(value);
  uint8_t best = 0;
  for (uint8_t code = 1; code < 0x7f; ++code) {
    const float now = std::fabs(kernels::f8_e4m3_to_float(code) - magnitude);
    const float before = std::fabs(kernels::f8_e4m3_to_float(best) - magnitude);
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

uint8_t clamp_code(float x, int low, int high) {
  return static_cast<uint8_t>(std::clamp(static_cast<int>(std::lround(x)), low, high));
}

void append_nibbles(std::vector<std::byte>& out, const std::array<uint8_t, 32>& codes) {
  for (size_t i = 0; i < 16; ++i)
    append(out, static_cast<uint8_t>(codes[i] | (codes[i + 16] << 4)));
}

void encode_q8_0(std::span<const float> x, std::vector<std::byte>& out) {
  float largest = 0;
  for (const float v : x) largest = std::max(largest, std::fabs(v));
  const float d = half_of(largest / 127);
  append(out, to_half(d));
  for (const float v : x)
    append(out, static_cast<int8_t>(d == 0 ? 0 : std::clamp(std::lround(v / d), -127l, 127l)));
}

void encode_q4_0(std::span<const float> x, std::vector<std::byte>& out) {
  float extreme = 0;
  for (const float v : x)
    if (std::fabs(v) > std::fabs(extreme)) extreme = v;
  const float d = half_of(extreme / -8);
  append(out, to_half(d));
  std::array<uint8_t, 32> codes = {};
  for (size_t i = 0; i < 32; ++i) codes[i] = d == 0 ? uint8_t{8} : clamp_code(x[i] / d + 8, 0, 15);
  append_nibbles(out, codes);
}

void encode_q4_1(std::span<const float> x, std::vector<std::byte>& out) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  const float d = half_of((*high - *low) / 15), m = half_of(*low);
  append(out, to_half(d));
  append(out, to_half(m));
  std::array<uint8_t, 32> codes = {};
  for (size_t i = 0; i < 32; ++i)
    codes[i] = d == 0 ? uint8_t{0} : clamp_code((x[i] - m) / d, 0, 15);
  append_nibbles(out, codes);
}

// 256 weights: low nibbles, high bit pairs, 16 scales of 8 bits, one half: w = d * scale * (q -
// 32).
void encode_q6_k(std::span<const float> x, std::vector<std::byte>& out) {
  std::array<float, 16> wanted = {};
  float largest = 0;
  for (size_t i = 0; i < 256; ++i) wanted[i / 16] = std::max(wanted[i / 16], std::fabs(x[i]) / 31);
  for (const float s : wanted) largest = std::max(largest, s);
  const float d = half_of(largest / 127);
  std::array<int8_t, 16> scales = {};
  std::array<uint8_t, 256> codes = {};
  for (size_t g = 0; g < 16; ++g)
    scales[g] = static_cast<int8_t>(d == 0 ? 0 : clamp_code(std::ceil(wanted[g] / d), 0, 127));
  for (size_t i = 0; i < 256; ++i) {
    const float step = d * static_cast<float>(scales[i / 16]);
    codes[i] = step == 0 ? uint8_t{32} : clamp_code(x[i] / step + 32, 0, 63);
  }
  // Within each half of 128, byte i of the low nibbles holds weights i and i + 64 (i < 64), byte i
  // of the high bits weights i, i + 32, i + 64 and i + 96 (i < 32).
  for (size_t half = 0; half < 256; half += 128)
    for (size_t i = 0; i < 64; ++i)
      append(out, static_cast<uint8_t>((codes[half + i] & 15) | (codes[half + i + 64] & 15) << 4));
  for (size_t half = 0; half < 256; half += 128)
    for (size_t i = 0; i < 32; ++i)
      append(out, static_cast<uint8_t>((codes[half + i] >> 4) | (codes[half + i + 32] >> 4) << 2 |
                                       (codes[half + i + 64] >> 4) << 4 |
                                       (codes[half + i + 96] >> 4) << 6));
  append(out, scales);
  append(out, to_half(d));
}

}  // namespace

void encode_row(WeightFormat format, std::span<const float> row, std::vector<std::byte>& out) {
  const size_t block = static_cast<size_t>(kernels::block_of(format).weights);
  ANNULUS_CHECK(row.size() % block == 0, row.size(), " weights in blocks of ", block);
  for (size_t at = 0; at < row.size(); at += block) {
    const std::span<const float> x = row.subspan(at, block);
    switch (format) {
      case WeightFormat::kF32: append(out, x[0]); break;
      case WeightFormat::kF16: append(out, to_half(x[0])); break;
      case WeightFormat::kBF16: append(out, kernels::to_bf16(x[0]).bits); break;
      case WeightFormat::kQ8_0: encode_q8_0(x, out); break;
      case WeightFormat::kQ4_0: encode_q4_0(x, out); break;
      case WeightFormat::kQ4_1: encode_q4_1(x, out); break;
      case WeightFormat::kQ6_K: encode_q6_k(x, out); break;
      case WeightFormat::kF8E4M3: append(out, to_f8_e4m3(x[0])); break;
    }
  }
}

F8Rows encode_f8_rows(std::span<const float> values, size_t cols) {
  F8Rows out;
  for (size_t first = 0; first < values.size(); first += cols) {
    const std::span<const float> row = values.subspan(first, cols);
    float largest = 0;
    for (const float x : row) largest = std::max(largest, std::fabs(x));
    const float scale = largest == 0 ? 1 : largest / 448;
    append(out.scales, scale);
    for (const float x : row) append(out.codes, to_f8_e4m3(x / scale));
  }
  return out;
}

uint32_t ggml_type(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return 0;
    case WeightFormat::kF16: return 1;
    case WeightFormat::kQ4_0: return 2;
    case WeightFormat::kQ4_1: return 3;
    case WeightFormat::kQ8_0: return 8;
    case WeightFormat::kQ6_K: return 14;
    case WeightFormat::kBF16: return 30;
    case WeightFormat::kF8E4M3: break;  // not in GGUF
  }
  return 0;
}

}  // namespace annulus::testing
