// SPDX-License-Identifier: Apache-2.0
// From logits to a token, on the rank that owns the position. PURE and seeded: the same logits,
// parameters and position give the same token on every machine and layout. Order: temperature,
// top-k, top-p (the fewest candidates that hold top_p of what top-k left), min-p (of the best
// one's), then inverse transform with one Philox4x32-10 number of (seed, position) over candidates
// sorted by (logit descending, id ascending). NaN counts as -inf; +inf takes all, shared evenly.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/step.h"

namespace annulus::parallel {

// Ten rounds of Philox4x32: a pure function (Salmon et al., SC 2011).
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);
// Uniform in [0, 1) with 53 bits; key = seed, counter = position.
double philox_uniform(uint64_t seed, uint64_t position);

// logits [vocab] f32, not empty. Greedy for temperature 0.
int32_t sample(std::span<const float> logits, const SamplingParams& params, int64_t position);

// Everything a Wanted asks for. log-probabilities are of the untempered softmax, lse in double. A
// target outside the vocabulary has -inf.
WantedResult answer(std::span<const float> logits, const SamplingParams& params, int32_t item,
                    const Wanted& wanted);

}  // namespace annulus::parallel
