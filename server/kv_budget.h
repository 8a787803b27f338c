// SPDX-License-Identifier: Apache-2.0
// Bounds on the KV rows that a sequence takes on any one rank, so that what is admitted never runs
// out half-way. PURE. A prompt chunk of n tokens takes at most ceil(n / cp) rows of a rank (zigzag
// gives its remainder to the first ranks), n decoded tokens at most ceil(n / cp) (round robin);
// whole chunks between multiples of 2 * cp are exact. Ranks hold rows in pages. Caller: scheduler.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/step.h"

namespace annulus::server {

// New rows on one rank when prompt positions [first, end) and then `decoded` tokens are computed.
// chunk > 0: boundaries at its multiples; 0: at multiples of 2 * cp.
int64_t rows_bound(int64_t first, int64_t end, int64_t decoded, int32_t cp, int32_t chunk);

// Rows of positions [0, length) in one rank's storage.
int64_t rows_below(std::span<const parallel::Span> storage, int64_t length);

int64_t round_to_pages(int64_t rows, int32_t page_tokens);

// The most answer tokens for which a prompt fits an empty rank; below 1: the prompt does not fit.
// (The last token of an answer is never fed, so it takes no row.)
int64_t most_answer_tokens(int64_t prompt, int32_t cp, int32_t chunk, int64_t capacity_rows,
                           int32_t page_tokens);

}  // namespace annulus::server
