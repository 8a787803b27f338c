// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/rope.h"

#include <cmath>
#include <numbers>

namespace annulus::parallel {
namespace {

double llama3_scaled(double frequency, const RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double original = static_cast<double>(scaling.original_context);
  if (wavelength < original / scaling.high_freq_factor) return frequency;
  if (wavelength > original / scaling.low_freq_factor) return frequency / scaling.factor;
  const double smooth = (original / wavelength - scaling.low_freq_factor) /
                        (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace

std::vector<double> rope_frequencies(const LlamaConfig& config) {
  std::vector<double> frequencies(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double frequency = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / config.head_dim);
    if (config.rope_scaling.kind == RopeScaling::Kind::kLinear)
      frequency /= config.rope_scaling.factor;
    if (config.rope_scaling.kind == RopeScaling::Kind::kLlama3)
      frequency = llama3_scaled(frequency, config.rope_scaling);
    if (!config.rope_divisors.empty()) frequency /= static_cast<double>(config.rope_divisors[i]);
    frequencies[i] = frequency;
  }
  return frequencies;
}

void fill_cos_sin(std::span<const double> frequencies, std::span<const int32_t> positions,
                  float* out) {
  const size_t half = frequencies.size();
  for (const int32_t position : positions) {
    const double pos = position < 0 ? 0.0 : static_cast<double>(position);
    for (size_t i = 0; i < half; ++i) {
      const double angle = pos * frequencies[i];
      out[i] = static_cast<float>(std::cos(angle));
      out[half + i] = static_cast<float>(std::sin(angle));
    }
    out += 2 * half;
  }
}

}  // namespace annulus::parallel
