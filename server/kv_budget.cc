// SPDX-License-Identifier: Apache-2.0
#include "server/kv_budget.h"

#include <algorithm>

#include "kernels/core/math.h"

namespace annulus::server {

using kernels::ceil_div;
namespace {

int64_t prompt_rows(int64_t first, int64_t end, int32_t cp, int32_t chunk) {
  if (first >= end) return 0;
  // Only the first and the last chunk are ragged: each adds less than one row to the even share.
  if (chunk <= 0) return (end - first) / cp + 2;
  const int64_t head = std::min(end, ceil_div(first, chunk) * chunk);
  const int64_t tail = std::max(head, end / chunk * chunk);
  return ceil_div(head - first, cp) + (tail - head) / chunk * ceil_div(chunk, cp) +
         ceil_div(end - tail, cp);
}

}  // namespace

int64_t rows_bound(int64_t first, int64_t end, int64_t decoded, int32_t cp, int32_t chunk) {
  return prompt_rows(first, end, cp, chunk) + ceil_div(std::max<int64_t>(decoded, 0), cp);
}

int64_t rows_below(std::span<const parallel::Span> storage, int64_t length) {
  int64_t rows = 0;
  for (const parallel::Span& span : storage) {
    if (span.first >= length) continue;
    rows += std::min<int64_t>(span.count, (length - 1 - span.first) / span.stride + 1);
  }
  return rows;
}

int64_t round_to_pages(int64_t rows, int32_t page_tokens) {
  return ceil_div(rows, page_tokens) * page_tokens;
}

int64_t most_answer_tokens(int64_t prompt, int32_t cp, int32_t chunk, int64_t capacity_rows,
                           int32_t page_tokens) {
  const int64_t whole_pages = capacity_rows / page_tokens * page_tokens;
  const int64_t left = whole_pages - prompt_rows(0, prompt, cp, chunk);
  return left < 0 ? 0 : left * cp + 1;
}

}  // namespace annulus::server
