// SPDX-License-Identifier: Apache-2.0
// Hosts of this machine's own: network namespaces on one switch, whose links can be shaped, cut and
// made to lose packets. For benchmarks of slow links and tests of broken ones. Needs root, iproute2
// and nftables; create() says so otherwise. Hosts are numbered from 0; the switch is a namespace
// too, with an address on the network. Everything goes with the object, which must outlive the
// processes in it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace annulus::bench {

class NetworkLab {
 public:
  static absl::StatusOr<std::unique_ptr<NetworkLab>> create(int hosts);
  ~NetworkLab();
  NetworkLab(const NetworkLab&) = delete;
  NetworkLab& operator=(const NetworkLab&) = delete;

  std::string host(int i) const;  // its namespace, and its interface there
  std::string switch_namespace() const { return prefix_ + "s"; }
  static std::string switch_address() { return "10.97.0.254"; }

  absl::Status shape(int host, double mbit);  // what it sends
  absl::Status cut(int host);
  absl::Status mend(int host);
  absl::Status lose(int host, int percent);  // of the packets to it and from it; 0: none again

 private:
  explicit NetworkLab(std::string prefix, int hosts) : prefix_(std::move(prefix)), hosts_(hosts) {}
  std::string port(int i) const;  // the switch's end of a host's link
  absl::Status shell(const std::string& command) const;

  const std::string prefix_;
  const int hosts_;
};

// Moves the calling thread, and what it starts, into a namespace, as `ip netns exec` does: with a
// /sys of the namespace's own, from which UCX learns its devices.
absl::Status enter_namespace(const std::string& name);

}  // namespace annulus::bench
