// SPDX-License-Identifier: Apache-2.0
// SIGTERM and SIGINT for processes that end in an orderly way: held in every thread and waited for
// by one.
#pragma once

#include <chrono>
#include <csignal>
#include <ctime>

namespace annulus::server {

inline sigset_t ending_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// From main(), before any other thread exists.
inline void hold_ending_signals() {
  const sigset_t set = ending_signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
}

// Whether one came within `wait`.
inline bool signalled(std::chrono::milliseconds wait) {
  const sigset_t set = ending_signals();
  const timespec time = {.tv_sec = wait.count() / 1000, .tv_nsec = wait.count() % 1000 * 1000000};
  return sigtimedwait(&set, nullptr, &time) > 0;
}

}  // namespace annulus::server
