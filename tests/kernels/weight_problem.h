// SPDX-License-Identifier: Apache-2.0
// Weights in every file format, made from random numbers, with what they mean in double precision
// (decoded here, independently of kernels/weight.cc).
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/weight.h"

namespace annulus::kernels {

inline constexpr WeightFormat kAllFormats[] = {
    WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16, WeightFormat::kQ8_0,
    WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ6_K, WeightFormat::kF8E4M3};

const char* name(WeightFormat format);

struct WeightProblem {
  // integers: every weight is a small integer, exact in bf16. cols: a multiple of the block.
  WeightProblem(WeightFormat format, int64_t rows, int64_t cols, bool integers, uint32_t seed);

  WeightSource source() const;
  double value(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
  // |d q| + |m|: what rounding errors of the weight are relative to.
  double size(int64_t r, int64_t c) const { return sizes[static_cast<size_t>(r * cols + c)]; }

  WeightFormat format;
  int64_t rows, cols;
  std::vector<std::byte> bytes;
  std::vector<double> values, sizes;

 private:
  void add_block(std::mt19937& random, bool integers);
  void push(double value, double size);
};

std::vector<float> random_floats(int64_t count, bool integers, uint32_t seed);

}  // namespace annulus::kernels
