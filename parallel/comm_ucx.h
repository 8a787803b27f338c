// SPDX-License-Identifier: Apache-2.0
// UcxWorld: the CPU data plane of one rank and one epoch. One UCX context and worker, thrown away
// whole: create, send address() through the control plane, connect(all addresses), groups(),
// destroy. Used by one thread at a time, save abort(); a world with peers on other hosts has a
// thread that answers them while this rank is idle (it wakes every 1 to 50 ms). A lost peer on this
// host is not reported by UCX: the control plane calls abort(), or the deadline decides; on another
// host its loss ends the waits on it at once. After an error a world is only good for destruction,
// which does not wait for peers nor leaves descriptors, shared memory or threads behind. UCX
// chooses the way per peer: shared memory and CMA within a host, RDMA or TCP between hosts.
// UCX_TLS, UCX_NET_DEVICES and all UCX_ variables of the environment win over the options.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/queue.h"
#include "parallel/communicator.h"
#include "parallel/topology.h"

namespace annulus::parallel {

// UCX's transport lists. kLocalTransports opens no network socket: for a world on one host.
inline constexpr const char* kAllTransports = "all";
inline constexpr const char* kLocalTransports = "shm,cma,self";
inline constexpr const char* kTcpTransports = "tcp,self";

struct UcxOptions {
  std::string transports = kAllTransports;
  std::string net_devices;  // "eth0,mlx5_0:1"; empty: all
};

class UcxWorld {
 public:
  static absl::StatusOr<std::unique_ptr<UcxWorld>> create(Topology topology, int32_t world_rank,
                                                          int64_t epoch,
                                                          const UcxOptions& options = {});
  ~UcxWorld();
  UcxWorld(const UcxWorld&) = delete;
  UcxWorld& operator=(const UcxWorld&) = delete;

  // Opaque bytes, guarded by a checksum; they name epoch and rank.
  std::string address() const;
  // Addresses of all world ranks (the own one too) in rank order; local, does not wait for peers.
  // InvalidArgument, FailedPrecondition: bytes that are no address, or of another rank, layout or
  // epoch. Unavailable: no common transport.
  absl::Status connect(std::span<const std::string> addresses);
  // After connect; they live as long as the world.
  Groups<kernels::CpuQueue> groups();
  // What messages to a world rank really take, once some have been exchanged: "posix/memory,
  // cma/memory", "tcp/eth0"; "" for this rank itself. From UCX's own words about the endpoint.
  std::string transports(int32_t world_rank);
  void abort(const std::string& why);  // any thread

 private:
  struct Impl;
  explicit UcxWorld(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The lanes in what ucp_ep_print_info() prints ("lane[0]:  5:tcp/eth0.0 md[1] ..."): transport and
// device of each, once.
std::string transports_in(std::string_view endpoint_info);
std::string ucx_version();

// UCX installs handlers for SIGSEGV, SIGHUP and others when its library is loaded; this takes them
// off again, and silences its log save fatal lines (what goes wrong is in our own errors), unless
// UCX_HANDLE_ERRORS or UCX_LOG_LEVEL are set. Runs by itself before main() in a program that links
// this file, but with ANNULUS_STATIC, where main() calls it; harmless to call again.
void tame_ucx();

}  // namespace annulus::parallel
