// SPDX-License-Identifier: Apache-2.0
#include "parallel/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels/core/check.h"

namespace annulus::parallel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 8;

struct Candidate {
  float logit = 0;
  int32_t id = 0;
};
bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

float cleaned(float logit) {
  return std::isnan(logit) ? -kInfinity : logit;
}

// exp(x) for x <= 0, relative error below 1e-8, 0 below -700; our own so that loops over a
// vocabulary vectorise and every machine rounds alike. 2^n is built in the exponent bits, with n
// rounded by adding 1.5 * 2^52; the rest |r| <= ln(2)/2 goes into its Taylor series.
inline double exp_of(double x) {
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
  const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) + 1023) << 52);
  return x > -700.0 ? p * power : 0.0;
}

// Probability relative to the best candidate's.
double weight(float logit, float max, double inverse_temperature) {
  if (logit == max) return 1;  // infinities too
  return exp_of((double{logit} - double{max}) * inverse_temperature);
}

float max_of(std::span<const float> logits) {
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -kInfinity);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];  // false for NaN
    }
  }
  float max = -kInfinity;
  for (const float lane : lanes) max = std::max(max, lane);
  for (; i < logits.size(); ++i) max = logits[i] > max ? logits[i] : max;
  return max;
}

// Sum of weights over the vocabulary, in an order that does not depend on the machine.
double mass_of(std::span<const float> logits, float max, double inverse_temperature) {
  if (std::isinf(max) || std::isinf(inverse_temperature)) {  // those at the top share it all
    double n = 0;
    for (const float logit : logits) n += cleaned(logit) == max ? 1 : 0;
    return n;
  }
  double lanes[kLanes] = {};
  const double top = max;
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      lanes[j] += exp_of((double{logits[i + j]} - top) * inverse_temperature);
    }
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  for (; i < logits.size(); ++i) sum += exp_of((double{logits[i]} - top) * inverse_temperature);
  return sum;
}

// The k best, in order. Candidates that cannot be among them are turned away by one comparison;
// the others gather in a buffer that is cut back to k when it is full.
std::vector<Candidate> best_of(std::span<const float> logits, size_t k) {
  k = std::min(k, logits.size());
  std::vector<Candidate> kept;
  if (k == 0) return kept;
  const size_t room = std::min(logits.size(), 2 * k + 256);
  kept.reserve(room);
  const auto kth = [&] { return kept.begin() + static_cast<std::ptrdiff_t>(k - 1); };
  bool full = false;
  Candidate bar;
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate c = {cleaned(logits[i]), static_cast<int32_t>(i)};
    if (full && !(c.logit > bar.logit)) continue;  // equal logits: the smaller id is in already
    if (kept.size() == room) {
      std::nth_element(kept.begin(), kth(), kept.end(), better);
      kept.resize(k);
      bar = kept[k - 1];
      full = true;
      if (!(c.logit > bar.logit)) continue;
    }
    kept.push_back(c);
  }
  if (kept.size() > k) {
    std::nth_element(kept.begin(), kth(), kept.end(), better);
    kept.resize(k);
  }
  std::sort(kept.begin(), kept.end(), better);
  return kept;
}

// Every candidate of at least `floor`, in order.
std::vector<Candidate> above(std::span<const float> logits, float floor) {
  std::vector<Candidate> kept;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = cleaned(logits[i]);
    if (logit >= floor) kept.push_back({logit, static_cast<int32_t>(i)});
  }
  std::sort(kept.begin(), kept.end(), better);
  return kept;
}

// What all questions about one row of logits share.
class Row {
 public:
  explicit Row(std::span<const float> values) : logits(values), max(max_of(values)) {
    ANNULUS_CHECK(!values.empty(), "no logits");
  }
  float logprob(float logit) {
    if (!log_mass_) log_mass_ = std::log(mass_of(logits, max, 1));
    const float x = cleaned(logit);
    return x == max ? static_cast<float>(-*log_mass_)
                    : static_cast<float>(double{x} - double{max} - *log_mass_);
  }

  const std::span<const float> logits;
  const float max;

 private:
  std::optional<double> log_mass_;  // lse - max, where it was asked for
};

int32_t argmax(const Row& row) {
  for (size_t i = 0; i < row.logits.size(); ++i) {
    if (cleaned(row.logits[i]) == row.max) return static_cast<int32_t>(i);
  }
  return 0;
}

// Walks the candidates in order, as far as the filters and the random number need them: mostly a
// few, so that the vocabulary is not sorted. Without top-k they come in lots of a growing distance
// (in units of the temperature) to the best.
int32_t draw(const Row& row, const SamplingParams& params, int64_t position) {
  const double inverse = 1.0 / double{params.temperature};
  const double uniform = philox_uniform(params.seed, static_cast<uint64_t>(position));
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < row.logits.size();
  const bool top_p = params.top_p<1, min_p = params.min_p> 0;
  double total = top_k ? 0 : mass_of(row.logits, row.max, inverse);
  for (float distance = 3;; distance *= 2) {
    const bool all = top_k || distance > 100;
    const float floor = all ? -kInfinity : row.max - distance * params.temperature;
    const std::vector<Candidate> best =
        top_k ? best_of(row.logits, static_cast<size_t>(params.top_k)) : above(row.logits, floor);
    if (top_k) {
      for (const Candidate& c : best) total += weight(c.logit, row.max, inverse);
    }
    std::vector<double> sums;  // cumulative weights of those that pass
    double sum = 0;
    bool cut = false;
    for (const Candidate& c : best) {
      const double w = weight(c.logit, row.max, inverse);
      cut = !sums.empty() &&
            ((top_p && sum >= double{params.top_p} * total) || (min_p && w < double{params.min_p}));
      if (cut) break;
      sum += w;
      sums.push_back(sum);
    }
    const bool filtered = top_p || min_p;
    if (!all && !(filtered ? cut : sum > uniform * total)) continue;
    const double target = uniform * (filtered || all ? sum : total);
    const auto hit = std::upper_bound(sums.begin(), sums.end(), target);
    // Rounding may leave the target at the sum itself: the last one that has any weight.
    const auto last = std::lower_bound(sums.begin(), sums.end(), sum);
    return best[static_cast<size_t>(std::min(hit, last) - sums.begin())].id;
  }
}

int32_t sample_row(const Row& row, const SamplingParams& params, int64_t position) {
  const bool greedy = !(params.temperature > 0);
  return greedy ? argmax(row) : draw(row, params, position);
}

}  // namespace

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

double philox_uniform(uint64_t seed, uint64_t position) {
  const auto random =
      philox4x32_10({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (uint64_t{random[0]} << 21) | (random[1] >> 11);
  return static_cast<double>(bits) * 0x1p-53;
}

int32_t sample(std::span<const float> logits, const SamplingParams& params, int64_t position) {
  return sample_row(Row(logits), params, position);
}

WantedResult answer(std::span<const float> logits, const SamplingParams& params, int32_t item,
                    const Wanted& wanted) {
  Row row(logits);
  WantedResult result;
  result.item = item;
  result.position = wanted.position;
  if (wanted.sample) {
    result.token = sample_row(row, params, wanted.position);
    if (wanted.logprob) result.logprob = row.logprob(logits[static_cast<size_t>(result.token)]);
  }
  if (wanted.target >= 0) {
    const auto target = static_cast<size_t>(wanted.target);
    result.target_logprob = target < logits.size() ? row.logprob(logits[target]) : -kInfinity;
  }
  if (wanted.top > 0) {
    for (const Candidate& c : best_of(logits, static_cast<size_t>(wanted.top))) {
      result.top.push_back({c.id, row.logprob(c.logit)});
    }
  }
  return result;
}

}  // namespace annulus::parallel
