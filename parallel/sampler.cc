// SPDX-License-Identifier: Apache-2.0
#include "parallel/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/weights_of_logits.h"

namespace annulus::parallel {

using kernels::Candidate;
using kernels::LogitAnswer;
using kernels::LogitWish;

std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter,
                                      std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xd2511f53u} * counter[0], b = uint64_t{0xcd9e8d57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9e3779b9u;
    key[1] += 0xbb67ae85u;
  }
  return counter;
}

uint64_t philox_uniform(uint64_t seed, uint64_t position) {
  const auto random =
      philox4x32_10({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (uint64_t{random[0]} << 32) | (random[1] >> 11 << 11);
}

LogitWish wish_of(const SamplingParams& params, const Wanted& wanted, int32_t vocab,
                  int32_t id_at) {
  LogitWish wish;
  if (wanted.sample) {
    wish.greedy = !(params.temperature > 0);
    if (!wish.greedy) wish.inverse_temperature = 1.0 / double{params.temperature};
    wish.random = philox_uniform(params.seed, static_cast<uint64_t>(wanted.position));
    wish.top_p = params.top_p;
    wish.min_p = params.min_p;
    wish.top_k = params.top_k;
    wish.id_at = id_at;
  }
  if (wanted.target < vocab) wish.target = wanted.target;
  wish.top = std::min(wanted.top, vocab);
  wish.mass = (wanted.sample && wanted.logprob) || wish.target >= 0 || wish.top > 0;
  return wish;
}

WantedResult answer_of(const LogitAnswer& found, std::span<const Candidate> top, int32_t vocab,
                       int32_t item, const Wanted& wanted) {
  const double log_mass = std::log(  // lse - best
      std::ldexp(static_cast<double>(found.mass), -kernels::weight_shift(vocab)));
  const auto logprob = [&](float logit) {
    const float x = kernels::cleaned(logit);
    return x == found.best ? static_cast<float>(-log_mass)
                           : static_cast<float>(double{x} - double{found.best} - log_mass);
  };
  WantedResult result;
  result.item = item;
  result.position = wanted.position;
  if (wanted.sample) {
    result.token = found.token;
    if (wanted.logprob) result.logprob = logprob(found.token_logit);
  }
  if (wanted.target >= 0) {
    result.target_logprob = wanted.target < vocab ? logprob(found.target_logit)
                                                  : -std::numeric_limits<float>::infinity();
  }
  if (wanted.top > 0) {
    const auto many = static_cast<size_t>(std::min(wanted.top, vocab));
    std::vector<Candidate> best(top.begin(), top.begin() + static_cast<std::ptrdiff_t>(many));
    std::sort(best.begin(), best.end(), [](const Candidate& a, const Candidate& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    });
    for (const Candidate& c : best) result.top.push_back({c.id, logprob(c.logit)});
  }
  return result;
}

}  // namespace annulus::parallel
