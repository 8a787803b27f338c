// SPDX-License-Identifier: Apache-2.0
#include "server/app/service_manager.h"

#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "server/one_line.h"

namespace annulus::server {

namespace {

constexpr std::chrono::seconds kBetweenStatus{1};

std::string take_variable(const char* name) {
  const char* value = std::getenv(name);
  std::string text = value == nullptr ? "" : value;
  unsetenv(name);
  return text;
}

}  // namespace

ServiceManager ServiceManager::from_environment() {
  ServiceManager manager;
  manager.path_ = take_variable("NOTIFY_SOCKET");
  const std::string period = take_variable("WATCHDOG_USEC"), pid = take_variable("WATCHDOG_PID");
  if (manager.path_.empty()) return manager;
  // A stopped manager must not hold up a front end for long: a message waits a second.
  const timeval patience = {.tv_sec = 1, .tv_usec = 0};
  manager.socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  setsockopt(manager.socket_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  int64_t us = 0;
  const bool ours = pid.empty() || pid == std::to_string(getpid());
  if (ours && absl::SimpleAtoi(period, &us) && us > 0) {
    manager.watchdog_ = std::chrono::microseconds(us);
  }
  return manager;
}

ServiceManager::ServiceManager(ServiceManager&& other) noexcept
    : path_(std::move(other.path_)),
      socket_(std::exchange(other.socket_, -1)),
      ready_(other.ready_),
      warned_(other.warned_),
      status_(std::move(other.status_)),
      watchdog_(other.watchdog_),
      next_status_(other.next_status_),
      next_alive_(other.next_alive_) {}

ServiceManager::~ServiceManager() {
  if (socket_ >= 0) close(socket_);
}

void ServiceManager::send(const std::string& message) {
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  if (path_.empty()) return;
  const char* problem = "";
  if (path_.size() >= sizeof address.sun_path || (path_[0] != '/' && path_[0] != '@')) {
    problem = "this is no name of a socket";
  } else {
    std::memcpy(static_cast<char*>(address.sun_path), path_.data(), path_.size());
    if (path_[0] == '@') address.sun_path[0] = '\0';
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_.size());
    const ssize_t sent = sendto(socket_, message.data(), message.size(), MSG_NOSIGNAL,
                                reinterpret_cast<const sockaddr*>(&address), length);
    if (sent >= 0) return;
    problem = std::strerror(errno);
  }
  if (std::exchange(warned_, true)) return;
  spdlog::warn("NOTIFY_SOCKET={}: the service manager is not told of this process: {}", path_,
               problem);
}

void ServiceManager::ready() {
  if (!std::exchange(ready_, true)) send("READY=1");
}

void ServiceManager::stopping() {
  send("STOPPING=1");
}

void ServiceManager::status(const std::string& line) {
  const Clock::time_point now = Clock::now();
  if (line == status_ || now < next_status_) return;
  status_ = line;
  next_status_ = now + kBetweenStatus;
  send("STATUS=" + one_line(line));
}

void ServiceManager::alive() {
  const Clock::time_point now = Clock::now();
  if (!watchdog_ || now < next_alive_) return;
  next_alive_ = now + *watchdog_ / 4;
  send("WATCHDOG=1");
}

}  // namespace annulus::server
