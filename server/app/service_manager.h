// SPDX-License-Identifier: Apache-2.0
// systemd as a service of Type=notify sees it: "VARIABLE=value" datagrams to the socket that
// NOTIFY_SOCKET names (sd_notify(3), whose protocol is documented and stable: written out here, as
// a library would be one more dependency of every installation). Without that variable nothing
// happens. Used by one thread. A message that cannot be sent is warned of once.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace annulus::server {

class ServiceManager {
 public:
  using Clock = std::chrono::steady_clock;

  // Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of the environment, so that no child
  // speaks for this process: before other threads exist.
  static ServiceManager from_environment();
  ServiceManager(ServiceManager&& other) noexcept;
  ServiceManager& operator=(ServiceManager&&) = delete;
  ~ServiceManager();

  void ready();     // READY=1; later calls do nothing
  void stopping();  // STOPPING=1
  // STATUS=line where it is news, at most once a second.
  void status(const std::string& line);
  // This process does its work: WATCHDOG=1, at most four times in the manager's WatchdogSec=.
  void alive();

 private:
  ServiceManager() = default;
  void send(const std::string& message);

  std::string path_;  // "": nobody listens; "@name": an abstract socket
  int socket_ = -1;
  bool ready_ = false, warned_ = false;
  std::string status_;
  std::optional<std::chrono::microseconds> watchdog_;
  Clock::time_point next_status_{}, next_alive_{};
};

}  // namespace annulus::server
