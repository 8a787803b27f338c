// SPDX-License-Identifier: Apache-2.0
#include "server/request_check.h"

#include <cmath>
#include <span>

#include "absl/strings/str_cat.h"

namespace annulus::server {
namespace {

absl::Status check_ids(const char* field, std::span<const int32_t> ids, int32_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      return absl::InvalidArgumentError(absl::StrCat(
          field, "[", i, "] is ", ids[i], ", outside the vocabulary of ", vocab, " tokens"));
    }
  }
  return absl::OkStatus();
}

absl::Status check_sampling(const parallel::SamplingParams& sampling) {
  if (!std::isfinite(sampling.temperature) || sampling.temperature < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.temperature is ", sampling.temperature,
                     "; it must be finite and at least 0 (0: greedy)"));
  }
  if (sampling.top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.top_k is ", sampling.top_k, "; it must be at least 0 (0: off)"));
  }
  // Written so that NaN fails.
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.top_p is ", sampling.top_p, "; it must be in (0, 1] (1: off)"));
  }
  if (!(sampling.min_p >= 0 && sampling.min_p < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.min_p is ", sampling.min_p, "; it must be in [0, 1) (0: off)"));
  }
  return absl::OkStatus();
}

absl::Status check_stops(const GenerateRequest& request) {
  if (static_cast<int64_t>(request.stop.size()) > kMaxStopStrings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stop has ", request.stop.size(), " strings; at most ", kMaxStopStrings, " are allowed"));
  }
  for (size_t i = 0; i < request.stop.size(); ++i) {
    if (request.stop[i].empty()) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "] is empty"));
    }
    if (static_cast<int64_t>(request.stop[i].size()) > kMaxStopStringBytes) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "] has ", request.stop[i].size(),
                                                     " bytes; at most ", kMaxStopStringBytes,
                                                     " are allowed"));
    }
  }
  if (static_cast<int64_t>(request.stop_ids.size()) > kMaxStopIds) {
    return absl::InvalidArgumentError(absl::StrCat("stop_token_ids has ", request.stop_ids.size(),
                                                   " ids; at most ", kMaxStopIds, " are allowed"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status check_request(const GenerateRequest& request, int32_t vocab, bool debug) {
  if (request.append && request.session.empty()) {
    return absl::InvalidArgumentError("append needs a session");
  }
  if (request.prompt.empty() && !request.append) {
    return absl::InvalidArgumentError("the prompt is empty; it needs at least one token");
  }
  if (static_cast<int64_t>(request.session.size()) > kMaxSessionNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat("session has ", request.session.size(),
                                                   " bytes; at most ", kMaxSessionNameBytes,
                                                   " are allowed"));
  }
  if (request.max_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", request.max_tokens,
                     "; it must be at least 0 (0: as many as the context allows)"));
  }
  if (request.top_logprobs < -1 || request.top_logprobs > parallel::kMaxTop) {
    return absl::InvalidArgumentError(absl::StrCat("top_logprobs is ", request.top_logprobs,
                                                   "; it must be in 0..", parallel::kMaxTop));
  }
  if (request.max_tokens > 0 &&
      static_cast<int64_t>(request.forced_tokens.size()) > request.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("forced_tokens has ",
                                                   request.forced_tokens.size(),
                                                   " ids but max_tokens is ", request.max_tokens));
  }
  if (absl::Status s = check_sampling(request.sampling); !s.ok()) return s;
  if (absl::Status s = check_stops(request); !s.ok()) return s;
  if ((request.variant || request.chunk_tokens) && !debug) {
    return absl::InvalidArgumentError(
        "attention and chunk_tokens can be set per request only where the server runs with "
        "--debug-requests");
  }
  if (request.chunk_tokens && *request.chunk_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_tokens is ", *request.chunk_tokens, "; it must be at least 1"));
  }
  if (absl::Status s = check_ids("prompt", request.prompt, vocab); !s.ok()) return s;
  if (absl::Status s = check_ids("stop_token_ids", request.stop_ids, vocab); !s.ok()) return s;
  return check_ids("forced_tokens", request.forced_tokens, vocab);
}

}  // namespace annulus::server
