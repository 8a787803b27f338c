// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace annulus::kernels {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

double element(const void* row, DType dtype, int64_t i) {
  return dtype == DType::kF32 ? static_cast<double>(static_cast<const float*>(row)[i])
                              : static_cast<double>(to_float(static_cast<const bf16*>(row)[i]));
}

// (o, lse) = merge((o, lse), (o2, lse2)) for one row and head.
void merge_row(double* o, double& lse, const double* o2, double lse2, int32_t head_dim) {
  if (lse2 == kMinusInfinity) return;
  double top = std::max(lse, lse2);
  double w = std::exp(lse - top), w2 = std::exp(lse2 - top);
  for (int32_t i = 0; i < head_dim; ++i) o[i] = (w * o[i] + w2 * o2[i]) / (w + w2);
  lse = top + std::log(w + w2);
}

}  // namespace

ReferencePartial::ReferencePartial(int64_t n_rows, int32_t n_heads, int32_t dim)
    : rows(n_rows),
      heads(n_heads),
      head_dim(dim),
      o(static_cast<size_t>(n_rows * n_heads * dim), 0.0),
      lse(static_cast<size_t>(n_rows * n_heads), kMinusInfinity) {}

const std::byte* kv_row(const KvRows& kv, const KvFormat& format, int32_t r) {
  if (kv.pages == nullptr) return kv.base + r * format.row_bytes();
  return kv.base + kv.pages[r / format.page_tokens] * format.page_bytes() +
         r % format.page_tokens * format.row_bytes();
}

void reference_attend(ConstTensor q, std::span<const Segment> segments, const KvFormat& format,
                      double scale, ReferencePartial& acc) {
  const int32_t d = format.head_dim, group = acc.heads / format.kv_heads;
  std::vector<double> o(static_cast<size_t>(d));
  for (const Segment& segment : segments) {
    std::vector<double> scores(static_cast<size_t>(segment.kv.count));
    for (int32_t i = 0; i < segment.q_count; ++i) {
      const int64_t row = segment.q_first + i;
      const auto* q_row =
          static_cast<const std::byte*>(q.data) + row * q.row_stride * size_bytes(q.dtype);
      for (int32_t head = 0; head < acc.heads; ++head) {
        const int64_t k_first = int64_t{head / group} * d;
        const int64_t v_first = k_first + int64_t{format.kv_heads} * d;
        double top = kMinusInfinity;
        for (int32_t key = 0; key < segment.kv.count; ++key) {
          double& score = scores[static_cast<size_t>(key)];
          score = kMinusInfinity;
          if (segment.kv.positions[key] > segment.q_positions[i]) continue;
          const std::byte* kv = kv_row(segment.kv, format, key);
          score = 0;
          for (int32_t j = 0; j < d; ++j)
            score += element(q_row, q.dtype, int64_t{head} * d + j) *
                     element(kv, format.dtype, k_first + j);
          score *= scale;
          top = std::max(top, score);
        }
        if (top == kMinusInfinity) continue;
        double sum = 0;
        std::fill(o.begin(), o.end(), 0.0);
        for (int32_t key = 0; key < segment.kv.count; ++key) {
          const double score = scores[static_cast<size_t>(key)];
          if (score == kMinusInfinity) continue;
          const double p = std::exp(score - top);
          const std::byte* kv = kv_row(segment.kv, format, key);
          sum += p;
          for (int32_t j = 0; j < d; ++j)
            o[static_cast<size_t>(j)] += p * element(kv, format.dtype, v_first + j);
        }
        for (double& x : o) x /= sum;
        const int64_t at = row * acc.heads + head;
        merge_row(&acc.o[static_cast<size_t>(at * d)], acc.lse[static_cast<size_t>(at)], o.data(),
                  top + std::log(sum), d);
      }
    }
  }
}

void reference_merge(ReferencePartial& into, const ReferencePartial& from) {
  for (size_t at = 0; at < into.lse.size(); ++at) {
    const size_t first = at * static_cast<size_t>(into.head_dim);
    merge_row(&into.o[first], into.lse[at], &from.o[first], from.lse[at], into.head_dim);
  }
}

}  // namespace annulus::kernels
