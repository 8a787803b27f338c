// SPDX-License-Identifier: Apache-2.0
// Attention over 2^20 keys against double precision, on every instruction set that this machine
// runs. The cache is small: a page table names the same pages again and again, so that a million
// keys are really read and summed, but take no memory of their own.
#include <gtest/gtest.h>

#include <random>

#include "tests/kernels/attention_problem.h"

namespace annulus::kernels {
namespace {

constexpr int32_t kKeys = 1 << 20;
constexpr int32_t kPageTokens = 64, kPages = 64;

// One sequence of kKeys cached tokens; q_count queries that see all of them, but for the last
// q_count - 1, which are hidden one by one from the queries before.
class LongProblem {
 public:
  LongProblem(Shape shape, DType dtype, int32_t q_count) : shape_(shape), q_count_(q_count) {
    format = {dtype, shape.kv_heads, shape.head_dim, kPageTokens};
    q_.resize(static_cast<size_t>(q_count * q_width() * size_bytes(dtype)));
    cache_.resize(static_cast<size_t>(kPages * format.page_bytes()));
    // Page 0 comes once, at the beginning.
    for (int32_t i = 0; i < kKeys / kPageTokens; ++i) {
      pages_.push_back(i == 0 ? 0 : 1 + i % (kPages - 1));
    }
    std::shuffle(pages_.begin() + 1, pages_.end(), random_);
    key_positions_ = range(0, kKeys);
    q_positions_ = range(kKeys - q_count, q_count);
  }

  void fill_random() {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < q_count_ * q_width(); ++i) put(q_, i, normal(random_), format.dtype);
    for (int64_t i = 0; i < kPages * kPageTokens * format.row_elements(); ++i)
      put(cache_, i, normal(random_), format.dtype);
  }
  // Scores are 0 but for those of the first page, which are larger, so that probabilities are
  // equal and no short binary fraction; V = 0.7 throughout, and so is every output.
  void fill_equal() {
    const int64_t half = format.row_elements() / 2, d = shape_.head_dim;
    for (int64_t i = 0; i < q_count_ * q_width(); ++i)
      put(q_, i, i % d == 0 ? 1.0f : 0.0f, format.dtype);
    for (int64_t i = 0; i < kPages * kPageTokens * format.row_elements(); ++i) {
      const bool value = i / half % 2 == 1;
      const bool first = i < kPageTokens * format.row_elements() && i % d == 0;
      put(cache_, i, value ? 0.7f : first ? 5.0f : 0.0f, format.dtype);
    }
  }

  ConstTensor q() const { return {q_.data(), format.dtype, q_count_, q_width(), q_width()}; }
  std::vector<Segment> segments() const {
    Segment s;
    s.q_count = q_count_;
    s.q_positions = q_positions_.data();
    s.kv = {cache_.data(), pages_.data(), key_positions_.data(), kKeys};
    return {s};
  }
  Shape shape() const { return shape_; }
  int32_t q_count() const { return q_count_; }

  KvFormat format;

 private:
  int64_t q_width() const { return int64_t{shape_.heads} * shape_.head_dim; }

  Shape shape_;
  int32_t q_count_;
  std::mt19937 random_{1};
  std::vector<std::byte> q_, cache_;
  std::vector<int32_t> pages_, key_positions_, q_positions_;
};

class LongAttention : public testing::TestWithParam<Target> {
 protected:
  void check(const LongProblem& p, Tolerance tolerance, const std::string& what) {
    const float scale = 1 / std::sqrt(static_cast<float>(p.shape().head_dim));
    CpuQueue queue(2, GetParam().isa);
    OwnedPartial got(p.q_count(), p.shape());
    attend(queue, p.q(), p.segments(), p.format, scale, got.view());
    ReferencePartial want(p.q_count(), p.shape().heads, p.shape().head_dim);
    reference_attend(p.q(), p.segments(), p.format, static_cast<double>(scale), want);
    expect_near(got, want, tolerance, what);
  }
};

// Few rows (the decode kernel: one row, a group of four heads) and tiled (nine rows; 16 columns).
constexpr Shape kFew = {4, 1, 32}, kTiled = {1, 1, 16};

// Normal scores and values: the tolerance of short sequences holds, because errors do not grow
// with the number of keys. An output is a mean of a million values and is about 0.002, so 1e-6 of
// the largest |v| is still 0.3 % of it.
TEST_P(LongAttention, AMillionRandomKeys) {
  const auto [isa, dtype] = GetParam();
  for (const auto& [shape, rows] : {std::pair(kFew, 1), std::pair(kTiled, 9)}) {
    LongProblem p(shape, dtype, rows);
    p.fill_random();
    check(p, tolerance(isa, dtype), std::to_string(rows) + " rows");
  }
}

// The worst case for sums: equal terms of one sign, whose roundings add up. The 64 products of a
// tile and the tiles of a split (512 at most: a million keys are 32 splits or more) are added one
// after the other, each with an error of 2^-24 of the sum at most; then 128 splits at most are
// merged. A sum carried from key to key would err by up to 8192 or 32768 times 2^-24. vdpbf16ps
// rounds P besides, the same for all keys of a split.
TEST_P(LongAttention, AMillionEqualKeys) {
  const auto [isa, dtype] = GetParam();
  const bool rounds_p = isa >= CpuIsa::kAvx512Bf16 && dtype == DType::kBF16;
  for (const auto& [shape, rows] : {std::pair(kFew, 1), std::pair(kTiled, 9)}) {
    LongProblem p(shape, dtype, rows);
    p.fill_equal();
    const double sums = (64 + 512 + 2 * 128) * 0x1p-24;
    check(p, {sums + (rounds_p ? 0x1p-9 : 0), sums}, std::to_string(rows) + " rows");
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, LongAttention, testing::ValuesIn(targets()), target_name);

// Scratch is bounded, not a partial of every 256 keys: 128 splits of (16 heads, 32 + 1 floats) are
// 0.3 MB, work items and the two threads' own tiles the rest.
TEST(LongAttentionScratch, DoesNotGrowWithTheKeys) {
  LongProblem p({16, 2, 32}, DType::kBF16, 1);
  p.fill_random();
  CpuQueue queue(2);
  OwnedPartial got(1, p.shape());
  attend(queue, p.q(), p.segments(), p.format, 0.1f, got.view());
  EXPECT_LT(queue.scratch_peak_bytes(), 1 << 20);
}

}  // namespace
}  // namespace annulus::kernels
