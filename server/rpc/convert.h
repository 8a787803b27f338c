// SPDX-License-Identifier: Apache-2.0
// Between the public protocol (proto/annulus/v1/inference.proto) and server/request.h, in both
// directions and nowhere else. Refused here is what has no meaning in request.h (ids outside the
// vocabulary, no prompt, text that cannot be encoded); ranges are checked by the engine
// (request_check.h). Every refusal is one line that names the field and says what to do. Pure but
// for draw_seed; any thread. Tokenising a long prompt takes seconds: never on a gRPC thread.
// Errors: InvalidArgument (the client can mend it), FailedPrecondition (no tokenizer or chat
// template).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "annulus/v1/inference.pb.h"
#include "server/engine.h"
#include "server/request.h"
#include "server/tokenizer/tokenizer.h"

namespace annulus::server {

// tokenizer may be null. A missing seed is drawn. Text of more bytes than the context's tokens can
// hold is OutOfRange before it is tokenised: that takes seconds and many times its size.
absl::StatusOr<GenerateRequest> to_request(const v1::GenerateRequest& proto,
                                           const Tokenizer* tokenizer, int32_t vocab,
                                           int64_t context);
absl::StatusOr<v1::TokenizeResponse> tokenize(const v1::TokenizeRequest& proto,
                                              const Tokenizer* tokenizer, int64_t context);
absl::StatusOr<v1::DetokenizeResponse> detokenize(const v1::DetokenizeRequest& proto,
                                                  const Tokenizer* tokenizer);

// What of a request its answers repeat.
struct ResponseContext {
  uint64_t seed = 0;
  bool logprobs = false;
};
// Every event but Failed, which is a status.
v1::GenerateResponse to_proto(const Event& event, const ResponseContext& context);
v1::GetClusterResponse to_proto(const ClusterStatus& status);

// Bytes that an event occupies while it waits for its reader, roughly.
int64_t event_bytes(const Event& event);

// What GetModel says beside the config.
struct ModelFacts {
  std::string path, precision;
  int64_t served_context = 0;
};
v1::GetModelResponse to_proto(const parallel::LlamaConfig& config, const ModelFacts& facts,
                              const Tokenizer* tokenizer);

v1::Attention to_proto(parallel::Variant variant);
uint64_t draw_seed();

}  // namespace annulus::server
