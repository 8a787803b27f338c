// SPDX-License-Identifier: Apache-2.0
// "HOST:PORT" as gRPC and flags take it. Pure.
#pragma once

#include <string>

namespace annulus::server {

// An IPv6 host goes into brackets.
inline std::string join_host_port(const std::string& host, int port) {
  const bool bare_ipv6 = host.find(':') != std::string::npos && host.front() != '[';
  return (bare_ipv6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

// The address of every interface: one to listen on, none to connect to.
inline bool is_wildcard(const std::string& host) {
  return host == "0.0.0.0" || host == "::";
}

}  // namespace annulus::server
