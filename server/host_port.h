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

// "HOST:PORT" or "[HOST]:PORT" where a host was asked for.
inline bool has_port(const std::string& host) {
  const size_t colon = host.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == host.size()) return false;
  const bool digits = host.find_first_not_of("0123456789", colon + 1) == std::string::npos;
  return digits && (host.find(':') == colon || host[colon - 1] == ']');
}

// The address of every interface: one to listen on, none to connect to.
inline bool is_wildcard(const std::string& host) {
  return host == "0.0.0.0" || host == "::";
}

}  // namespace annulus::server
