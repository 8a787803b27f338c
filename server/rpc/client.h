// SPDX-License-Identifier: Apache-2.0
// The client of the command line: blocking calls of annulus.v1.Inference. One object per server;
// any thread. Errors are those of the call; Unavailable, where nobody answers, says what to do.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "annulus/v1/inference.pb.h"

namespace annulus::server {

class InferenceClient {
 public:
  // Opens no connection yet. address: host:port.
  explicit InferenceClient(const std::string& address);
  ~InferenceClient();

  // Events in order, on the calling thread. cancel() from any other thread ends the call that runs.
  absl::Status generate(const v1::GenerateRequest& request,
                        const std::function<void(const v1::GenerateResponse&)>& on_event);
  void cancel();

  absl::StatusOr<v1::GetModelResponse> model();
  absl::StatusOr<v1::GetClusterResponse> cluster();
  absl::Status rewind(const std::string& session, int64_t length);
  absl::StatusOr<bool> serving();  // what health says

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::server
