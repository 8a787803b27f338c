// SPDX-License-Identifier: Apache-2.0
// Between plans and kernels/sampling.h: what a Wanted asks of a row of logits, and what is answered
// from what the device found. PURE and seeded: the same logits, parameters and position give the
// same token on every machine, device and layout. The draw is one Philox4x32-10 number of (seed,
// position).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sampling.h"
#include "parallel/step.h"

namespace annulus::parallel {

// Ten rounds of Philox4x32: a pure function (Salmon et al., SC 2011).
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);
// Uniform in units of 2^-64, 53 bits of them; key = seed, counter = position.
uint64_t philox_uniform(uint64_t seed, uint64_t position);

// id_at as in LogitWish. A target outside the vocabulary, whose logit there is none of, is not
// asked for.
kernels::LogitWish wish_of(const SamplingParams& params, const Wanted& wanted, int32_t vocab,
                           int32_t id_at);

// Everything a Wanted asks for. log-probabilities are of the untempered softmax, lse in double. A
// target outside the vocabulary has -inf. top: at least min(wanted.top, vocab), in any order.
WantedResult answer_of(const kernels::LogitAnswer& found, std::span<const kernels::Candidate> top,
                       int32_t vocab, int32_t item, const Wanted& wanted);

}  // namespace annulus::parallel
