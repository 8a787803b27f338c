// SPDX-License-Identifier: Apache-2.0
// The server that clients see: Inference, health and reflection on one port. Owned by `annulus
// serve`; the engine outlives it. Health says NOT_SERVING until set_serving(true). To end: drain(),
// wait for the requests that run, shutdown(). Any thread. Errors: Unavailable from start() where
// the port is taken.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine.h"
#include "server/rpc/service_core.h"

namespace annulus::server {

struct PublicServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any
  int64_t max_message_bytes = int64_t{256} << 20;
  OutboxLimits outbox;
  int tokenizer_threads = 2;
  double hung_s = 10;  // an engine thread that does not come round for so long is not "live"
};

class PublicServer {
 public:
  static absl::StatusOr<std::unique_ptr<PublicServer>> start(
      Engine& engine, std::shared_ptr<const Tokenizer> tokenizer,
      const parallel::LlamaConfig& config, const ModelFacts& facts,
      const PublicServerOptions& options);
  ~PublicServer();  // shutdown at once

  int port() const;
  void set_serving(bool serving);  // no effect while draining
  // Calls of Generate that have ended, by gRPC code.
  std::array<int64_t, RequestCounts::kCodes> requests() const;
  void drain();  // NOT_SERVING; new requests are UNAVAILABLE
  // Ends calls that still run after `grace` with UNAVAILABLE.
  void shutdown(absl::Duration grace);

 private:
  struct Impl;
  explicit PublicServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::server
