// SPDX-License-Identifier: Apache-2.0
// Attention over very many keys. The cache is small: a page table names the same pages again and
// again, so that a million keys are really read and summed, but take no memory of their own.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "tests/kernels/attention_problem.h"

namespace annulus::kernels {

// One sequence of `keys` cached tokens; q_count queries that see all of them, but for the last
// q_count - 1, which are hidden one by one from the queries before.
class LongProblem {
 public:
  LongProblem(Shape shape, DType dtype, int32_t q_count, int32_t keys)
      : shape_(shape), q_count_(q_count) {
    format = {dtype, shape.kv_heads, shape.head_dim, kPageTokens};
    q_.resize(static_cast<size_t>(q_count * q_width() * size_bytes(dtype)));
    cache_.resize(static_cast<size_t>(kPages * format.page_bytes()));
    // Page 0 comes once, at the beginning.
    for (int32_t i = 0; i < keys / kPageTokens; ++i) {
      pages_.push_back(i == 0 ? 0 : 1 + i % (kPages - 1));
    }
    std::shuffle(pages_.begin() + 1, pages_.end(), random_);
    key_positions_ = range(0, keys);
    q_positions_ = range(keys - q_count, q_count);
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

  const std::vector<std::byte>& cache() const { return cache_; }
  const std::vector<int32_t>& pages() const { return pages_; }
  const std::vector<int32_t>& key_positions() const { return key_positions_; }
  ConstTensor q() const { return {q_.data(), format.dtype, q_count_, q_width(), q_width()}; }
  std::vector<Segment> segments() const {
    Segment s;
    s.q_count = q_count_;
    s.q_positions = q_positions_.data();
    s.kv = {cache_.data(), pages_.data(), key_positions_.data(),
            static_cast<int32_t>(key_positions_.size())};
    return {s};
  }
  Shape shape() const { return shape_; }
  int32_t q_count() const { return q_count_; }

  KvFormat format;

 private:
  static constexpr int32_t kPageTokens = 64, kPages = 64;
  int64_t q_width() const { return int64_t{shape_.heads} * shape_.head_dim; }

  Shape shape_;
  int32_t q_count_;
  std::mt19937 random_{1};
  std::vector<std::byte> q_, cache_;
  std::vector<int32_t> pages_, key_positions_, q_positions_;
};

}  // namespace annulus::kernels
