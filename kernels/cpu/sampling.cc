// SPDX-License-Identifier: Apache-2.0
// Sampling on CPUs: candidates are walked in order, as far as the filters and the random number
// need them: mostly a few, so that the vocabulary is not sorted.
#include "kernels/sampling.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/weights_of_logits.h"
#include "kernels/cpu/queue.h"

namespace annulus::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 8;

// An object, so that sorting inlines it.
constexpr auto better = [](const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
};

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

// Sum of weights, where the best logit is finite.
uint64_t mass_of(std::span<const float> logits, double best, double inverse_temperature,
                 int shift) {
  uint64_t lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      lanes[j] += biased_weight_of((double{logits[i + j]} - best) * inverse_temperature, shift);
    }
  }
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum += lane;
  for (; i < logits.size(); ++i)
    sum += biased_weight_of((double{logits[i]} - best) * inverse_temperature, shift);
  return sum - logits.size() * kBiasOfWeight;  // modulo 2^64 on the way
}

class Row {
 public:
  Row(const Logits& logits, int64_t row)
      : first_(logits.data + row * logits.width),
        stride_(logits.rows * logits.width),
        pieces_(logits.pieces),
        width_(logits.width),
        shift_(weight_shift(logits.vocab())) {
    best_ = -kInfinity;
    for (int32_t p = 0; p < pieces_; ++p) best_ = std::max(best_, max_of(piece(p)));
  }

  size_t vocab() const { return static_cast<size_t>(pieces_) * static_cast<size_t>(width_); }
  int shift() const { return shift_; }
  float best() const { return best_; }
  float logit(int32_t id) const { return first_[id / width_ * stride_ + id % width_]; }
  uint64_t weight(float logit, double inverse_temperature) const {
    return weight_of(logit, best_, inverse_temperature, shift_);
  }

  // body(logit, id), ids ascending, for as long as it returns true.
  template <class Body>
  void each(const Body& body) const {
    for (int32_t p = 0; p < pieces_; ++p) {
      const std::span<const float> logits = piece(p);
      for (int32_t c = 0; c < width_; ++c) {
        if (!body(logits[static_cast<size_t>(c)], p * width_ + c)) return;
      }
    }
  }

  uint64_t mass(double inverse_temperature) const {
    uint64_t sum = 0;
    if (best_ == kInfinity || best_ == -kInfinity) {  // those at the top share it all
      each([&](float logit, int32_t) {
        sum += cleaned(logit) == best_ ? uint64_t{1} << shift_ : 0;
        return true;
      });
      return sum;
    }
    for (int32_t p = 0; p < pieces_; ++p)
      sum += mass_of(piece(p), best_, inverse_temperature, shift_);
    return sum;
  }

 private:
  std::span<const float> piece(int32_t p) const {
    return {first_ + p * stride_, static_cast<size_t>(width_)};
  }

  const float* first_;
  int64_t stride_;
  int32_t pieces_, width_;
  int shift_;
  float best_;
};

// The k best, in order. Candidates that cannot be among them are turned away by one comparison;
// the others gather in a buffer that is cut back to k when it is full.
std::vector<Candidate> best_of(const Row& row, size_t k) {
  k = std::min(k, row.vocab());
  std::vector<Candidate> kept;
  if (k == 0) return kept;
  const size_t room = std::min(row.vocab(), 2 * k + 256);
  kept.reserve(room);
  const auto kth = [&] { return kept.begin() + static_cast<std::ptrdiff_t>(k - 1); };
  bool full = false;
  Candidate bar;
  row.each([&](float logit, int32_t id) {
    const Candidate c = {cleaned(logit), id};
    if (full && !(c.logit > bar.logit)) return true;  // equal logits: the smaller id is in already
    if (kept.size() == room) {
      std::nth_element(kept.begin(), kth(), kept.end(), better);
      kept.resize(k);
      bar = kept[k - 1];
      full = true;
      if (!(c.logit > bar.logit)) return true;
    }
    kept.push_back(c);
    return true;
  });
  if (kept.size() > k) {
    std::nth_element(kept.begin(), kth(), kept.end(), better);
    kept.resize(k);
  }
  std::sort(kept.begin(), kept.end(), better);
  return kept;
}

// Every candidate of at least `floor`, in order.
std::vector<Candidate> above(const Row& row, float floor) {
  std::vector<Candidate> kept;
  row.each([&](float raw, int32_t id) {
    const float logit = cleaned(raw);
    if (logit >= floor) kept.push_back({logit, id});
    return true;
  });
  std::sort(kept.begin(), kept.end(), better);
  return kept;
}

int32_t argmax(const Row& row) {
  int32_t found = 0;
  row.each([&](float logit, int32_t id) {
    if (cleaned(logit) != row.best()) return true;
    found = id;
    return false;
  });
  return found;
}

// Without top-k, candidates come in lots of a growing distance (in units of the temperature) to
// the best.
int32_t draw(const Row& row, const LogitWish& wish) {
  const bool top_k = wish.top_k > 0 && static_cast<size_t>(wish.top_k) < row.vocab();
  const bool top_p = wish.top_p<1, min_p = wish.min_p> 0;
  uint64_t total = top_k ? 0 : row.mass(wish.inverse_temperature);
  for (double distance = 3;; distance *= 2) {
    const bool all = top_k || distance > 100;
    const double floor = std::max(double{std::numeric_limits<float>::lowest()},
                                  double{row.best()} - distance / wish.inverse_temperature);
    const std::vector<Candidate> best =
        top_k ? best_of(row, static_cast<size_t>(wish.top_k))
              : above(row, all ? -kInfinity : static_cast<float>(floor));
    if (top_k) {
      for (const Candidate& c : best) total += row.weight(c.logit, wish.inverse_temperature);
    }
    const uint64_t held = held_by_top_p(wish.top_p, total);
    std::vector<uint64_t> sums;  // cumulative weights of those that pass
    uint64_t sum = 0;
    bool cut = false;
    for (const Candidate& c : best) {
      const uint64_t weight = row.weight(c.logit, wish.inverse_temperature);
      cut = !sums.empty() &&
            ((top_p && sum >= held) || (min_p && fails_min_p(weight, wish.min_p, row.shift())));
      if (cut) break;
      sum += weight;
      sums.push_back(sum);
    }
    const bool filtered = top_p || min_p;
    const uint64_t target = multiply_high(wish.random, filtered || all ? sum : total);
    if (!all && !(filtered ? cut : sum > target)) continue;
    const auto hit = std::upper_bound(sums.begin(), sums.end(), target);
    return best[static_cast<size_t>(hit - sums.begin())].id;
  }
}

}  // namespace

template <>
void sample<CpuQueue>(CpuQueue& queue, const Logits& logits, std::span<const LogitWish> wishes,
                      const SampleOut& out) {
  ANNULUS_CHECK(static_cast<int64_t>(wishes.size()) == logits.rows && logits.vocab() > 0,
                wishes.size(), " wishes for ", logits.rows, " x ", logits.vocab());
  queue.parallel_for(logits.rows, [&](int64_t r, int) {
    const LogitWish& wish = wishes[static_cast<size_t>(r)];
    const Row row(logits, r);
    LogitAnswer answer;
    answer.best = row.best();
    if (wish.mass) answer.mass = row.mass(1);
    if (wish.id_at >= 0) {
      answer.token = wish.greedy ? argmax(row) : draw(row, wish);
      answer.token_logit = row.logit(answer.token);
      out.ids[wish.id_at] = answer.token;
    }
    if (wish.target >= 0) answer.target_logit = row.logit(wish.target);
    if (wish.top > 0) {
      const auto best = best_of(row, static_cast<size_t>(wish.top));
      ANNULUS_CHECK(static_cast<int64_t>(best.size()) <= out.top_room, best.size(), " in ",
                    out.top_room);
      std::copy(best.begin(), best.end(), out.top + r * out.top_room);
    }
    out.answers[r] = answer;
  });
}

template <>
void resolve_ids<CpuQueue>(CpuQueue&, std::span<int32_t> out, std::span<const int32_t> ids,
                           const int32_t* known) {
  ANNULUS_CHECK(out.size() == ids.size(), out.size(), " of ", ids.size());
  std::transform(ids.begin(), ids.end(), out.begin(),
                 [&](int32_t id) { return id >= 0 ? id : known[~id]; });
}

}  // namespace annulus::kernels
