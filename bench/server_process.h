// SPDX-License-Identifier: Apache-2.0
// A running engine for benchmarks and tests: `annulus serve` started as a process of its own on a
// free loopback port, with whatever flags, and ended (SIGTERM, then SIGKILL) with the object, or by
// SIGTERM when the thread that started it ends. Used from one thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::bench {

// The annulus executable: $ANNULUS_BINARY, else the one of the same build tree.
std::string annulus_binary();

class ServerProcess {
 public:
  // flags: everything after `annulus serve --port 0`. Waits until it serves; the error holds its
  // last lines of log.
  static absl::StatusOr<ServerProcess> start(const std::vector<std::string>& flags,
                                             double timeout_s = 120);
  ServerProcess(ServerProcess&& other) noexcept;
  ServerProcess& operator=(ServerProcess&&) = delete;
  ~ServerProcess();

  pid_t pid() const { return pid_; }
  const std::string& address() const { return address_; }  // 127.0.0.1:PORT
  std::string log() const;
  // Waits for the process to end by itself; its exit status, or -1 after the time.
  int wait_exit(double timeout_s);

 private:
  ServerProcess() = default;
  pid_t pid_ = -1;
  std::string address_, folder_;
};

}  // namespace annulus::bench
