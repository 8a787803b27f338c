// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/listen.h"

#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/host_port.h"

namespace annulus::server {

absl::StatusOr<Listening> listen(const std::string& host, int port, int64_t max_message_bytes,
                                 int64_t buffer_bytes,
                                 const std::vector<grpc::Service*>& services) {
  if (has_port(host)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on \"", host,
                     "\": an address alone is wanted, its port has a flag of its own (--port, "
                     "--control-port)"));
  }
  const auto max_bytes =
      static_cast<int>(std::min<int64_t>(max_message_bytes, std::numeric_limits<int>::max()));
  Listening out;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(max_bytes);
  builder.SetMaxSendMessageSize(-1);
  if (buffer_bytes > 0) {
    grpc::ResourceQuota quota;
    quota.Resize(static_cast<size_t>(buffer_bytes));
    builder.SetResourceQuota(quota);
  }
  // Two servers that share a port would each get a part of the clients.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  const std::string address = join_host_port(host, port);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &out.port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  out.server = builder.BuildAndStart();
  if (out.server == nullptr || out.port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address,
                     ": the port is taken or the address is not this machine's (port 0 takes any "
                     "free one)"));
  }
  return out;
}

}  // namespace annulus::server
