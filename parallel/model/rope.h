// SPDX-License-Identifier: Apache-2.0
// Rotary position angles. Frequencies, products and range reduction are doubles: at position 2^20
// an angle is exact to 1e-9 rad, so its float cosine is the nearest float but for ties, where a
// float32 product would be off by 0.03 rad. Pure; called by llama once a step, by any thread.
// Source: RoPE, arXiv:2104.09864; the llama3 rule as published with Llama 3.1
// (transformers/modeling_rope_utils.py, _compute_llama3_parameters).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/model/config.h"

namespace annulus::parallel {

// Radians per position of each pair, [head_dim / 2], scaling applied.
std::vector<double> rope_frequencies(const LlamaConfig& config);

// out [positions, 2 * frequencies]: the cosines of a row's angles, then the sines. Any position
// that is not negative; padding rows (position INT32_MIN) get angle 0.
void fill_cos_sin(std::span<const double> frequencies, std::span<const int32_t> positions,
                  float* out);

}  // namespace annulus::parallel
