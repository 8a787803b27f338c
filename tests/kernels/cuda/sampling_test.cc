// SPDX-License-Identifier: Apache-2.0
// Sampling on a GPU, or on the emulated one, finds what a CPU finds, to the bit: tokens, the logits
// and sums that log-probabilities are made of, the best of a row.
#include "kernels/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/weights_of_logits.h"
#include "kernels/cpu/queue.h"
#include "tests/kernels/cuda/device_array.h"

namespace annulus::kernels {
namespace {

using CudaSampling = CudaTest;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Found {
  std::vector<LogitAnswer> answers;
  std::vector<Candidate> top;
  std::vector<int32_t> ids;
};

// In an order of their own, whatever the device's is.
void sort_top(Found& found, const std::vector<LogitWish>& wishes, int64_t room) {
  for (size_t r = 0; r < wishes.size(); ++r) {
    const auto first = found.top.begin() + static_cast<int64_t>(r) * room;
    std::sort(first, first + wishes[r].top, [](const Candidate& a, const Candidate& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    });
  }
}

// Both devices' answers are the same. logits [pieces][rows][width].
class Comparison {
 public:
  explicit Comparison(CudaQueue& queue) : queue_(queue) {}

  void check(const std::vector<float>& logits, int32_t pieces, int32_t width,
             std::vector<LogitWish> wishes, const std::string& what) {
    const auto rows = static_cast<int64_t>(wishes.size());
    ASSERT_EQ(static_cast<int64_t>(logits.size()), rows * pieces * width);
    int64_t room = 0;
    int32_t at = 0;
    for (LogitWish& wish : wishes) {
      wish.id_at = at++;
      wish.top = std::min(wish.top, pieces * width);
      room = std::max(room, int64_t{wish.top});
    }
    std::reverse(wishes.begin(), wishes.end());  // ids are not rows
    Found cpu = {std::vector<LogitAnswer>(wishes.size()),
                 std::vector<Candidate>(static_cast<size_t>(rows * room)),
                 std::vector<int32_t>(wishes.size(), -7)};
    Found gpu = cpu;
    sample(cpu_, {logits.data(), rows, pieces, width}, wishes,
           {cpu.answers.data(), cpu.top.data(), room, cpu.ids.data()});
    {
      const CudaQueue::Mark mark(queue_);
      auto* const answers = queue_.scratch<LogitAnswer>(rows);
      auto* const top = queue_.scratch<Candidate>(rows * room);
      auto* const ids = queue_.scratch<int32_t>(rows);
      const Logits there = {queue_.upload(std::span<const float>(logits)).data(), rows, pieces,
                            width};
      sample(queue_, there, queue_.upload(std::span<const LogitWish>(wishes)),
             {answers, top, room, ids});
      queue_.download(std::span(gpu.answers), answers);
      queue_.download(std::span(gpu.top), top);
      queue_.download(std::span(gpu.ids), ids);
      queue_.finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
    }
    EXPECT_EQ(gpu.ids, cpu.ids) << what;
    sort_top(cpu, wishes, room);
    sort_top(gpu, wishes, room);
    for (size_t r = 0; r < wishes.size(); ++r) {
      const LogitAnswer &got = gpu.answers[r], &want = cpu.answers[r];
      ASSERT_EQ(got.token, want.token) << what << ", row " << r;
      EXPECT_EQ(got.mass, want.mass) << what << ", row " << r;
      EXPECT_EQ(got.best, want.best) << what << ", row " << r;
      EXPECT_EQ(cleaned(got.token_logit), cleaned(want.token_logit)) << what << ", row " << r;
      EXPECT_EQ(cleaned(got.target_logit), cleaned(want.target_logit)) << what << ", row " << r;
      for (size_t i = 0; i < static_cast<size_t>(wishes[r].top); ++i) {
        const Candidate &its = gpu.top[r * static_cast<size_t>(room) + i],
                        &best = cpu.top[r * static_cast<size_t>(room) + i];
        ASSERT_EQ(its.id, best.id) << what << ", row " << r << ", place " << i;
        ASSERT_EQ(its.logit, best.logit) << what << ", row " << r << ", place " << i;
      }
      ++rows_;
    }
  }
  int64_t rows() const { return rows_; }

 private:
  CudaQueue& queue_;
  CpuQueue cpu_{1};
  int64_t rows_ = 0;
};

constexpr float kTemperatures[] = {0.01f, 0.3f, 0.7f, 1, 1.5f, 20, 1e-30f, 1e30f};

LogitWish random_wish(std::mt19937_64& random, int32_t vocab) {
  const auto below = [&](uint64_t n) { return random() % n; };
  LogitWish wish;
  wish.greedy = below(8) == 0;
  wish.inverse_temperature = 1.0 / double{kTemperatures[below(std::size(kTemperatures))]};
  const uint64_t draws[] = {0, ~uint64_t{0}, random(), random(), random(), random()};
  wish.random = draws[below(std::size(draws))];
  const float top_p[] = {1, 1, 0.9f, 0.5f, 0.05f, 1e-9f, 0.99999994f};
  wish.top_p = top_p[below(std::size(top_p))];
  const float min_p[] = {0, 0, 0, 0.05f, 0.5f, 1, 1e-12f};
  wish.min_p = min_p[below(std::size(min_p))];
  const int32_t top_k[] = {0, 0, 0, 1, 2, 40, vocab - 1, vocab, INT32_MAX};
  wish.top_k = top_k[below(std::size(top_k))];
  wish.mass = below(2) == 0;
  wish.target = below(2) == 0 ? -1 : static_cast<int32_t>(below(static_cast<uint64_t>(vocab)));
  const int32_t top[] = {0, 0, 1, 5, 128};
  wish.top = top[below(std::size(top))];
  return wish;
}

// Peaked as a model's, flat, of few values, with NaN and infinities, about the zeros, where weights
// are below 2^-shift of the best.
float random_logit(std::mt19937_64& random, int kind) {
  std::normal_distribution<float> normal;
  switch (kind) {
    case 0: return 3 * normal(random);
    case 1: return 1e-6f * normal(random);
    case 2: return static_cast<float>(random() % 3);
    case 3: {
      const float odd[] = {kNan, kInf, -kInf, 3e38f, -3e38f, 0, 1};
      return odd[random() % 7];
    }
    case 4: {
      const float odd[] = {kNan, -kInf, 0.0f, -0.0f, 1e-40f, -1e-40f};
      return odd[random() % 6];
    }
    case 5: return random() % 50 == 0 ? kNan : 20 * normal(random);
    case 6: return random() % 50 == 0 ? 5.0f : -kInf;
    default: return -40 * static_cast<float>(random() % 1000) / 1000;
  }
}

TEST_F(CudaSampling, FindsWhatACpuFinds) {
  std::mt19937_64 random(1);
  Comparison comparison(queue());
  const int32_t shapes[][2] = {{1, 1}, {1, 2}, {1, 17}, {2, 33}, {3, 200}, {1, 513}, {4, 512}};
  for (const auto& [pieces, width] : shapes) {
    for (int kind = 0; kind < 8; ++kind) {
      const size_t rows = 12;
      std::vector<float> logits(rows * static_cast<size_t>(pieces * width));
      for (float& x : logits) x = random_logit(random, kind);
      std::vector<LogitWish> wishes;
      for (size_t r = 0; r < rows; ++r) wishes.push_back(random_wish(random, pieces * width));
      comparison.check(logits, pieces, width, wishes,
                       std::to_string(pieces) + " x " + std::to_string(width) + ", kind " +
                           std::to_string(kind));
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_EQ(comparison.rows(), 7 * 8 * 12);
}

TEST_F(CudaSampling, LargeVocabularies) {
  std::mt19937_64 random(2);
  Comparison comparison(queue());
  for (const auto& [pieces, width] : {std::pair{1, 128256}, std::pair{8, 16032}}) {
    for (const int kind : {0, 1, 2}) {
      std::vector<float> logits(2 * static_cast<size_t>(pieces * width));
      for (float& x : logits) x = random_logit(random, kind);
      LogitWish plain, filtered;
      plain.greedy = filtered.greedy = false;
      plain.mass = filtered.mass = true;
      plain.random = random();
      filtered.random = random();
      filtered.inverse_temperature = 1 / 0.8;
      filtered.top_p = 0.95f;
      filtered.top_k = 1000;
      filtered.min_p = 0.01f;
      filtered.top = 128;
      comparison.check(logits, pieces, width, {plain, filtered}, "kind " + std::to_string(kind));
    }
  }
}

TEST_F(CudaSampling, IdsAreLookedUpWhereTheyAreNamed) {
  const std::vector<int32_t> ids = {5, ~0, ~3, 0, ~1}, known = {10, 11, 12, 13};
  const CudaQueue::Mark mark(queue());
  const std::span<int32_t> out(queue().scratch<int32_t>(5), 5);
  resolve_ids(queue(), out, queue().upload(std::span<const int32_t>(ids)),
              queue().upload(std::span<const int32_t>(known)).data());
  std::vector<int32_t> back(5);
  queue().download(std::span(back), out.data());
  queue().finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
  EXPECT_EQ(back, (std::vector<int32_t>{5, 10, 13, 0, 11}));
}

}  // namespace
}  // namespace annulus::kernels
