// SPDX-License-Identifier: Apache-2.0
// Element types of activations, KV caches and payloads. bf16 is rounded to nearest even; NaN stays
// NaN.
#pragma once

#include <bit>
#include <cstdint>

namespace annulus::kernels {

enum class DType : uint8_t { kF32 = 0, kBF16 = 1 };

constexpr int64_t size_bytes(DType type) {
  return type == DType::kF32 ? 4 : 2;
}
constexpr const char* name(DType type) {
  return type == DType::kF32 ? "f32" : "bf16";
}

struct bf16 {
  uint16_t bits;
};

constexpr float to_float(bf16 x) {
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}

constexpr bf16 to_bf16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// IEEE half to float, subnormals included.
constexpr float half_to_float(uint16_t h) {
  uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  float value = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -value : value;
}

// OCP 8-bit floating point E4M3 (the "FN" kind: no infinities, largest 448) to float.
constexpr float f8_e4m3_to_float(uint8_t f) {
  const uint32_t sign = (f & 0x80u) << 24, exponent = f >> 3 & 15u, mantissa = f & 7u;
  if (exponent == 15 && mantissa == 7) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
  const float value = static_cast<float>(mantissa) * 0x1p-9f;
  return sign != 0 ? -value : value;
}

inline constexpr float kF8Largest = 448;

// To nearest even; what is larger becomes the largest, NaN stays NaN.
constexpr uint8_t float_to_f8_e4m3(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t sign = u >> 24 & 0x80u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  const float size = std::bit_cast<float>(u);
  if (size >= kF8Largest) return static_cast<uint8_t>(sign | 0x7eu);
  // Below 2^-6 a step is 2^-9, which is that of floats from 2^14 on.
  if (size < 0x1p-6f)
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(size + 0x1p14f) & 0xffu));
  return static_cast<uint8_t>(sign | (((u + 0x7ffffu + (u >> 20 & 1u)) >> 20) - (120u << 3)));
}

}  // namespace annulus::kernels
