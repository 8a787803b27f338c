// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels/weight_problem.h"

#include <cmath>
#include <cstring>

#include "kernels/core/dtype.h"

namespace annulus::kernels {
namespace {

// A half and its value: 1, or sign * 2^e * (1 + f / 1024).
struct Half {
  uint16_t bits;
  double value;
};
Half one() {
  return {0x3c00, 1.0};
}
Half random_half(std::mt19937& random, int lowest, int highest) {
  int exponent = std::uniform_int_distribution<int>(lowest, highest)(random);
  unsigned fraction = random() % 1024u, sign = random() % 2u;
  double value = std::ldexp(1.0 + fraction / 1024.0, exponent);
  return {static_cast<uint16_t>(sign << 15 | static_cast<unsigned>(exponent + 15) << 10 | fraction),
          sign != 0 ? -value : value};
}

template <class T>
void append(std::vector<std::byte>& bytes, T value) {
  size_t at = bytes.size();
  bytes.resize(at + sizeof value);
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

}  // namespace

const char* name(WeightFormat format) {
  constexpr const char* kNames[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q6_K", "F8E4M3"};
  return kNames[static_cast<int>(format)];
}

WeightProblem::WeightProblem(WeightFormat f, int64_t row_count, int64_t col_count, bool integers,
                             uint32_t seed)
    : format(f), rows(row_count), cols(col_count) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < rows * cols / block_of(format).weights; ++i) add_block(random, integers);
}

WeightSource WeightProblem::source() const {
  return {format, bytes.data(),
          rows,   cols,
          0,      cols / block_of(format).weights * block_of(format).bytes};
}

void WeightProblem::push(double value, double size) {
  values.push_back(value);
  sizes.push_back(size);
}

void WeightProblem::add_block(std::mt19937& random, bool integers) {
  auto integer = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  switch (format) {
    case WeightFormat::kF32: {
      float w = integers ? static_cast<float>(integer(-9, 9))
                         : std::normal_distribution<float>(0.0f, 0.05f)(random);
      append(bytes, w);
      return push(w, std::abs(w));
    }
    case WeightFormat::kF16: {
      Half w = random_half(random, -12, -3);
      if (integers) w = integer(0, 1) != 0 ? one() : Half{0xc400, -4.0};
      append(bytes, w.bits);
      return push(w.value, std::abs(w.value));
    }
    case WeightFormat::kBF16: {
      bf16 w = to_bf16(integers ? static_cast<float>(integer(-9, 9))
                                : std::normal_distribution<float>(0.0f, 0.05f)(random));
      append(bytes, w);
      return push(to_float(w), std::abs(to_float(w)));
    }
    case WeightFormat::kF8E4M3: {
      const int exponent = integers ? 7 : integer(1, 14), mantissa = integers ? 0 : integer(0, 7);
      const int sign = integer(0, 1);
      append(bytes, static_cast<uint8_t>(sign << 7 | exponent << 3 | mantissa));
      const double size = std::ldexp(1 + mantissa / 8.0, exponent - 7);
      return push(sign != 0 ? -size : size, size);
    }
    case WeightFormat::kQ8_0: {
      Half d = integers ? one() : random_half(random, -14, -9);
      append(bytes, d.bits);
      for (int i = 0; i < 32; ++i) {
        auto q = static_cast<int8_t>(integer(-128, 127));
        append(bytes, q);
        push(d.value * q, std::abs(d.value * q));
      }
      return;
    }
    case WeightFormat::kQ4_0:
    case WeightFormat::kQ4_1: {
      bool minimum = format == WeightFormat::kQ4_1;
      Half d = integers ? one() : random_half(random, -9, -5);
      Half m = integers ? Half{0xc400, -4.0} : random_half(random, -7, -3);
      if (!minimum) m.value = -8 * d.value;
      append(bytes, d.bits);
      if (minimum) append(bytes, m.bits);
      int q[32];
      for (int i = 0; i < 16; ++i) {
        q[i] = integer(0, 15);
        q[i + 16] = integer(0, 15);
        append(bytes, static_cast<uint8_t>(q[i] + 16 * q[i + 16]));
      }
      for (int i : q) push(d.value * i + m.value, std::abs(d.value * i) + std::abs(m.value));
      return;
    }
    case WeightFormat::kQ6_K: {
      // Sequential order of the format's description: for each half, l = 0..31 gives weights l,
      // l + 32, l + 64, l + 96 from ql[l], ql[l + 32] and qh[l].
      uint8_t ql[128], qh[64];
      int8_t scales[16];
      for (uint8_t& b : ql) b = static_cast<uint8_t>(integer(0, 255));
      for (uint8_t& b : qh) b = static_cast<uint8_t>(integer(0, 255));
      for (int8_t& s : scales)
        s = static_cast<int8_t>(integers ? integer(-2, 2) : integer(-128, 127));
      Half d = integers ? one() : random_half(random, -14, -12);
      double block[256];
      for (int half = 0; half < 2; ++half) {
        const uint8_t *low = ql + 64 * half, *high = qh + 32 * half;
        const int8_t* s = scales + 8 * half;
        for (int l = 0; l < 32; ++l) {
          int q[4] = {
              (low[l] & 15) + 16 * (high[l] & 3), (low[l + 32] & 15) + 16 * (high[l] / 4 & 3),
              low[l] / 16 + 16 * (high[l] / 16 & 3), low[l + 32] / 16 + 16 * (high[l] / 64)};
          for (int g = 0; g < 4; ++g)
            block[128 * half + 32 * g + l] = d.value * s[2 * g + l / 16] * (q[g] - 32);
        }
      }
      for (uint8_t b : ql) append(bytes, b);
      for (uint8_t b : qh) append(bytes, b);
      for (int8_t s : scales) append(bytes, s);
      append(bytes, d.bits);
      for (double w : block) push(w, std::abs(w));
      return;
    }
  }
}

std::vector<float> random_floats(int64_t count, bool integers, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values)
    v = integers ? static_cast<float>(std::uniform_int_distribution<int>(-8, 8)(random))
                 : std::normal_distribution<float>()(random);
  return values;
}

}  // namespace annulus::kernels
