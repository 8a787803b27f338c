// SPDX-License-Identifier: Apache-2.0
// What both gRPC servers of the front end have in common. Only for files that see grpc.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::server {

struct Listening {
  std::unique_ptr<grpc::Server> server;
  int port = 0;  // the one bound
};

// Binds host:port (port 0: any free one) and serves. Clients may ping as often as twice a second,
// also while nothing runs: a first token may take minutes. buffer_bytes > 0 bounds what all
// messages on their way in hold together: beyond it streams end with RESOURCE_EXHAUSTED, the oldest
// connections' first, whoever fills the buffers. Unavailable: the port is taken or the address is
// not ours.
absl::StatusOr<Listening> listen(const std::string& host, int port, int64_t max_message_bytes,
                                 int64_t buffer_bytes, const std::vector<grpc::Service*>& services);

}  // namespace annulus::server
