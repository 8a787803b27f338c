// SPDX-License-Identifier: Apache-2.0
// Random attention problems for tests: queries, keys and values of several sequences with freely
// chosen positions, the cache both paged (shuffled pages) and packed. All that no kernel may read
// (the rest of pages, K and V of padding rows, rows of q between segments) holds NaN; behind q, the
// cache and the Partial there is no memory.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/queue.h"
#include "kernels/reference/attention.h"
#include "tests/kernels/guarded.h"

namespace annulus::kernels {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Shape {
  int32_t heads, kv_heads, head_dim;
};

struct Sequence {
  std::vector<int32_t> q_positions, key_positions;
};

inline std::vector<int32_t> range(int32_t first, int32_t count, int32_t stride = 1) {
  std::vector<int32_t> positions(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) positions[static_cast<size_t>(i)] = first + i * stride;
  return positions;
}

// A full or partial prefill: n_new tokens after n_cached.
inline Sequence prefill(int32_t n_new, int32_t n_cached = 0) {
  return {range(n_cached, n_new), range(0, n_cached + n_new)};
}

template <class Bytes>
void put(Bytes& bytes, int64_t element, float x, DType dtype) {
  const bf16 rounded = to_bf16(x);
  if (dtype == DType::kF32)
    std::memcpy(&bytes[static_cast<size_t>(element * 4)], &x, 4);
  else
    std::memcpy(&bytes[static_cast<size_t>(element * 2)], &rounded, 2);
}

class Problem {
 public:
  Problem(Shape shape, DType dtype, std::vector<Sequence> sequences, uint32_t seed = 1,
          int32_t page_tokens = 16)
      : shape_(shape), sequences_(std::move(sequences)), random_(seed) {
    format = {dtype, shape.kv_heads, shape.head_dim, page_tokens};
    scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    // One row of nobody before every segment and one at the end.
    rows_ = 1;
    int32_t n_pages = 0;
    for (const Sequence& s : sequences_) {
      rows_ += static_cast<int32_t>(s.q_positions.size()) + 1;
      n_pages += (count(s) + format.page_tokens - 1) / format.page_tokens;
    }
    const float nan = std::numeric_limits<float>::quiet_NaN();
    q_ = Guarded<std::byte>(static_cast<size_t>(rows_ * q_width() * size_bytes(dtype)));
    for (int64_t i = 0; i < rows_ * q_width(); ++i) put(q_, i, nan, dtype);
    store_ = Guarded<std::byte>(static_cast<size_t>(n_pages * format.page_bytes()));
    for (int64_t i = 0; i < n_pages * format.page_tokens * format.row_elements(); ++i)
      put(store_, i, nan, dtype);
    pages_.resize(static_cast<size_t>(n_pages));
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), random_);

    std::normal_distribution<float> normal;
    int32_t row = 0, page = 0;
    for (const Sequence& s : sequences_) {
      ++row;
      Segment segment;
      segment.q_first = row;
      segment.q_count = static_cast<int32_t>(s.q_positions.size());
      segment.q_positions = s.q_positions.data();
      segment.kv = {store_.data(), pages_.data() + page, s.key_positions.data(), count(s)};
      page += (count(s) + format.page_tokens - 1) / format.page_tokens;
      for (int64_t i = row * q_width(); i < (row + segment.q_count) * q_width(); ++i)
        put(q_, i, normal(random_), dtype);
      for (int32_t r = 0; r < segment.kv.count; ++r) {
        if (s.key_positions[static_cast<size_t>(r)] == kPaddingKeyPos) continue;
        const int64_t first = (kv_row(segment.kv, format, r) - store_.data()) / size_bytes(dtype);
        for (int64_t i = 0; i < format.row_elements(); ++i)
          put(store_, first + i, normal(random_), dtype);
      }
      row += segment.q_count;
      paged.push_back(segment);
    }
    pack();
  }

  // After changes to the cache: the packed copy again.
  void pack() {
    int64_t rows = 0;
    for (const Segment& s : paged) rows += s.kv.count;
    packed_ = Guarded<std::byte>(static_cast<size_t>(rows * format.row_bytes()));
    std::byte* to = packed_.data();
    for (const Segment& s : paged)
      for (int32_t r = 0; r < s.kv.count; ++r) {
        const std::byte* p = kv_row(s.kv, format, r);
        to = std::copy(p, p + format.row_bytes(), to);
      }
    packed = paged;
    const std::byte* base = packed_.data();
    for (Segment& s : packed) {
      s.kv.base = base;
      s.kv.pages = nullptr;
      base += s.kv.count * format.row_bytes();
    }
  }

  std::span<const std::byte> q_bytes() const { return q_; }
  std::span<const std::byte> store() const { return store_; }  // what paged segments lie in
  std::span<const std::byte> packed_rows() const { return packed_; }
  ConstTensor q() const { return {q_.data(), format.dtype, rows_, q_width(), q_width()}; }
  // Elements of q and of a cache row, for tests that set them.
  void set_q(int32_t row, int64_t element, float x) {
    put(q_, row * q_width() + element, x, format.dtype);
  }
  void set_kv(const Segment& s, int32_t r, int64_t element, float x) {
    const int64_t first = (kv_row(s.kv, format, r) - store_.data()) / size_bytes(format.dtype);
    put(store_, first + element, x, format.dtype);
  }

  ReferencePartial reference() const {
    ReferencePartial out(rows_, shape_.heads, shape_.head_dim);
    reference_attend(q(), paged, format, static_cast<double>(scale), out);
    return out;
  }
  int64_t rows() const { return rows_; }
  Shape shape() const { return shape_; }
  std::mt19937& random() { return random_; }

  KvFormat format;
  float scale;
  std::vector<Segment> paged, packed;

 private:
  static int32_t count(const Sequence& s) { return static_cast<int32_t>(s.key_positions.size()); }
  int64_t q_width() const { return int64_t{shape_.heads} * shape_.head_dim; }

  Shape shape_;
  std::vector<Sequence> sequences_;
  std::mt19937 random_;
  int32_t rows_ = 0;
  Guarded<std::byte> q_, store_, packed_;
  std::vector<int32_t> pages_;
};

// A Partial that owns its memory; starts empty.
class OwnedPartial {
 public:
  OwnedPartial(int64_t rows, Shape shape)
      : o(static_cast<size_t>(rows * shape.heads * shape.head_dim)),
        lse(static_cast<size_t>(rows * shape.heads)),
        rows_(rows),
        shape_(shape) {
    std::fill(lse.begin(), lse.end(), kMinusInfinity);
  }
  explicit OwnedPartial(const Problem& p) : OwnedPartial(p.rows(), p.shape()) {}
  Partial view() { return {o.data(), lse.data(), rows_, shape_.heads, shape_.head_dim}; }
  bool operator==(const OwnedPartial& other) const {
    return o.size() == other.o.size() && lse.size() == other.lse.size() &&
           std::memcmp(o.data(), other.o.data(), o.size() * sizeof(float)) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }

  Guarded<float> o, lse;

 private:
  int64_t rows_;
  Shape shape_;
};

// Allowed errors. fp32: a score errs by a few eps times sum |q k| scale (about 5 here), exp by
// 2e-7, both sums average out: 1e-6 of the largest |v|, which is below 5.5 for all our normals.
// With vdpbf16ps P is rounded to bf16, by 2^-9 of itself at most, and so is, in the worst case,
// their mean; the sum in lse is not rounded.
struct Tolerance {
  double o, lse;
};
inline Tolerance tolerance(CpuIsa isa, DType dtype) {
  const bool rounds_p = isa >= CpuIsa::kAvx512Bf16 && dtype == DType::kBF16;
  return {5.5 * (1e-6 + (rounds_p ? 0x1p-9 : 0.0)), 1e-6};
}

// Failure names the worst element; what is no number is the worst. lse errs relative to max(1,
// |lse|).
inline void expect_near(const OwnedPartial& got, const ReferencePartial& want, Tolerance tolerance,
                        const std::string& what) {
  double worst_o = 0, worst_lse = 0;
  size_t at_o = 0, at_lse = 0;
  for (size_t i = 0; i < want.lse.size(); ++i) {
    const double x = static_cast<double>(got.lse[i]);
    double error = std::abs(x - want.lse[i]) / std::max(1.0, std::abs(want.lse[i]));
    if (want.lse[i] == static_cast<double>(kMinusInfinity)) error = x == want.lse[i] ? 0 : INFINITY;
    if (!(error <= worst_lse)) worst_lse = std::isnan(error) ? INFINITY : error, at_lse = i;
  }
  for (size_t i = 0; i < want.o.size(); ++i) {
    const double error = std::abs(static_cast<double>(got.o[i]) - want.o[i]);
    if (!(error <= worst_o)) worst_o = std::isnan(error) ? INFINITY : error, at_o = i;
  }
  EXPECT_LE(worst_lse, tolerance.lse)
      << what << ": lse[" << at_lse << "] is " << got.lse[at_lse] << ", not " << want.lse[at_lse];
  EXPECT_LE(worst_o, tolerance.o) << what << ": o[" << at_o << "] is " << got.o[at_o] << ", not "
                                  << want.o[at_o];
}

struct Target {
  CpuIsa isa;
  DType dtype;
};
// Every instruction set that this machine runs, with every dtype.
inline std::vector<Target> targets() {
  std::vector<Target> all;
  for (const CpuIsa isa : kCpuIsas)
    for (DType dtype : {DType::kF32, DType::kBF16})
      if (isa <= detect_cpu_isa()) all.push_back({isa, dtype});
  return all;
}
inline std::string target_name(const testing::TestParamInfo<Target>& info) {
  std::string text = std::string(name(info.param.isa)) + "_" + name(info.param.dtype);
  for (char& c : text)
    if (c == '-') c = '_';
  return text;
}

}  // namespace annulus::kernels
