// SPDX-License-Identifier: Apache-2.0
// What a client asks for and what it is told: plain data between server/rpc and server/engine.
// Prompts are token ids here; rpc validates and tokenises before. Positions and counts are tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "parallel/step.h"

namespace annulus::server {

struct GenerateRequest {
  std::string request_id;  // for logs; made up where empty
  std::vector<int32_t>
      prompt;  // the whole sequence, or with `append` what follows the session's present tokens
  std::string
      session;  // "": none. A session keeps its KV; the longest common prefix is not computed again
  bool append = false;
  int32_t max_tokens = 0;  // 0: as many as the context allows
  parallel::SamplingParams sampling;
  std::vector<std::string> stop;  // text that ends the answer and is not part of it
  std::vector<int32_t> stop_ids;  // beside the model's end-of-sequence ids
  bool ignore_eos = false;
  int32_t top_logprobs =
      -1;  // -1: no logprobs; 0..128: of the chosen token and that many of the most likely
  // Prompt positions whose successor is scored: log-probability of the next prompt token (none
  // after the last) and the top_logprobs most likely. `all_prompt_logprobs`: every computed
  // position.
  std::vector<int64_t> prompt_logprob_positions;
  bool all_prompt_logprobs = false;
  std::vector<int32_t>
      forced_tokens;  // decode steps take these instead of samples: evaluation now, recovery later
  std::optional<parallel::Variant> variant;  // --debug-requests
  std::optional<int32_t> chunk_tokens;       // --debug-requests
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled };
const char* name(FinishReason reason);  // "stop", "length", "cancelled"

struct Accepted {
  std::string request_id, session;
  int64_t prompt_tokens = 0, cached_tokens = 0;
};
struct PrefillProgress {
  int64_t done = 0, total = 0;  // prompt tokens with KV, cached ones included
  parallel::Variant variant = parallel::Variant::kPassKv;  // of the chunk just computed
  double predicted_us[parallel::kVariants] = {0, 0, 0};    // attention of that chunk by variant
};
struct PromptLogprob {
  int64_t position = 0;
  int32_t token = -1;  // the next prompt token, -1 after the last
  float logprob = 0;
  std::vector<parallel::TopLogprob> top;
};
struct Token {
  int32_t id = 0;
  std::string text;  // complete characters only; may be empty, or hold several tokens' text
  float logprob = 0;
  std::vector<parallel::TopLogprob> top;
};
struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  int64_t prefill_steps[parallel::kVariants] = {0, 0, 0};  // steps of this request by variant
  int64_t decode_steps[parallel::kVariants] = {0, 0, 0};
  double queue_ms = 0, ttft_ms = 0, decode_ms = 0;
};
struct Finished {
  FinishReason reason = FinishReason::kStop;
  std::string stop_text;  // the stop string that matched
  Usage usage;
};
struct Failed {
  absl::Status status;
};
using Event = std::variant<Accepted, PrefillProgress, PromptLogprob, Token, Finished, Failed>;

// Receives a request's events in order, from the engine thread; must not block. Finished or Failed
// is the last.
using EventSink = std::function<void(Event)>;

}  // namespace annulus::server
