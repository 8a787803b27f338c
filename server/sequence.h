// SPDX-License-Identifier: Apache-2.0
// Sequence: one request inside the scheduler, waiting or running. Plain data, changed by the
// scheduler alone. Positions: prompt tokens are [0, prompt), answer token i has position prompt + i
// and is sampled from the logits at the position before it; the last answer token is never fed.
#pragma once

#include <cstdint>
#include <vector>

#include "server/request.h"

namespace annulus::server {

struct Sequence {
  int64_t id = 0;
  GenerateRequest request;      // its prompt and forced_tokens have moved out
  std::vector<int32_t> tokens;  // prompt, then the answer as far as it is known
  int64_t prompt = 0;           // tokens
  int64_t max_tokens = 0;       // capped to the context and to what KV can hold
  std::vector<int32_t> forced;
  std::vector<int32_t> stop_ids;  // ascending
  std::vector<int64_t> scored;    // prompt positions with log-probabilities, ascending
  bool score_all = false;

  int32_t slot = -1;
  int64_t cached = 0;            // positions reused from the session
  int64_t planned = 0;           // positions [0, planned) have KV once all sent plans have run
  parallel::SampledRef sampled;  // names the token at `planned` when it is not known yet
  std::vector<int64_t> reserved_rows;  // by cp rank: never exceeded
  Usage usage;

  int64_t known() const { return static_cast<int64_t>(tokens.size()); }
  int64_t answered() const { return known() - prompt; }
  bool prefilling() const { return planned < prompt; }
  // The answer's last token is sampled at position prompt + max_tokens - 2.
  bool all_planned() const { return planned >= prompt + max_tokens - 1; }
  bool is_forced(int64_t position) const {
    return position >= prompt && position - prompt < static_cast<int64_t>(forced.size());
  }
};

}  // namespace annulus::server
