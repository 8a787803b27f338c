// SPDX-License-Identifier: Apache-2.0
// A blocking client for benchmarks: one call, everything it streamed, and when. Thread-safe: one
// Client, many calls.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/v1/inference.grpc.pb.h"

namespace annulus::bench {

struct Answer {
  std::vector<v1::Token> tokens;
  std::vector<v1::PromptLogprob> prompt;
  std::vector<v1::PrefillProgress> progress;
  v1::Accepted accepted;
  v1::Finished finished;
  double ttft_ms = 0, total_ms = 0;  // seen by the client
  std::vector<double> token_ms;      // when each token came
};

struct Served {
  v1::GetModelResponse model;
  v1::GetClusterResponse cluster;
};

class Client {
 public:
  explicit Client(const std::string& address);

  using OnProgress = std::function<void(const v1::PrefillProgress&)>;
  // deadline_s: of the call; 0: none.
  absl::StatusOr<Answer> generate(const v1::GenerateRequest& request, double deadline_s = 0,
                                  const OnProgress& on_progress = {}) const;
  // Every event as it comes; once on_event answers false the call is cancelled (CANCELLED).
  // deadline_s: of the call; 0: none.
  absl::Status stream(const v1::GenerateRequest& request,
                      const std::function<bool(v1::GenerateResponse&)>& on_event,
                      double deadline_s = 0) const;
  // These compute nothing and have a deadline of ten seconds.
  absl::StatusOr<v1::GetClusterResponse> cluster() const;
  absl::StatusOr<v1::GetModelResponse> model() const;
  // Both, of a server that serves; the error is a line for whoever named its address.
  absl::StatusOr<Served> reach() const;
  absl::Status rewind_session(const std::string& session, int64_t length) const;
  absl::Status close_session(const std::string& session) const {
    return rewind_session(session, 0);
  }

 private:
  std::string address_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// Of --attention; anything but a variant is auto.
v1::Attention attention_of(const std::string& name);

// A prompt without meaning, the same on every machine: ids spread over the vocabulary.
std::vector<int32_t> synthetic_ids(int64_t count, int32_t vocab);

// Little-endian int32, as GenerateRequest.packed_tokens wants them.
std::string pack_tokens(const std::vector<int32_t>& ids);

}  // namespace annulus::bench
