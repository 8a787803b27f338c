// SPDX-License-Identifier: Apache-2.0
// The haystack of annulus-bench recall: a prompt of exactly `tokens` ids in which a needle of its
// own stands on, before and after every edge of the split: where prefill chunks begin and where,
// within each, one rank's part ends and the next one's begins (zigzag). At the end of the prompt
// stand the asks, one for every needle before them; needles among the asks are asked while
// decoding, with some of the others. Needles are checks themselves: each asks for the next needle,
// which the causal mask must hide, for the one before, or for itself. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/recall_model.h"

namespace annulus::bench {

struct RecallLayout {
  int64_t tokens = 0;
  int32_t chunk = 0, cp = 1;
};

struct RecallCheck {
  int64_t position = 0;  // whose logits are checked
  int32_t code = 0;      // asked for there
  bool ask = false;      // by an ask: the needle must be found
};

struct RecallPrompt {
  RecallModel model;
  RecallLayout layout;
  std::vector<int32_t> ids;
  std::vector<PlacedNeedle> needles;       // by position; code i is the i-th
  std::vector<RecallCheck> prompt_checks;  // by position
  std::vector<RecallCheck> decode_checks;  // one a decoded token
  std::vector<int32_t> forced;             // the asks of decode_checks

  int64_t fillers_up_to(int64_t position) const;
  RecallAnswer answer(const RecallCheck& check, bool bf16_cache) const;
  // Which rank computed a position of the prompt.
  int32_t rank_of(int64_t position) const;
};

// InvalidArgument where the edges need more needles than there are codes, or the prompt is too
// short to ask for them. least_decoded: decoded asks, besides those for needles among the asks.
absl::StatusOr<RecallPrompt> make_recall_prompt(const RecallLayout& layout, int32_t head_dim,
                                                int32_t tp, int32_t least_decoded);

}  // namespace annulus::bench
