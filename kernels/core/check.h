// SPDX-License-Identifier: Apache-2.0
// ANNULUS_CHECK: an invariant of ours is broken. Prints expression, place and values, then aborts;
// always on. For shapes and plans, at the front of an op: never per element. Bad input of users is
// absl::Status instead, a machine that fails (device, network, lost peer, deadline) throws
// DeviceError, caught once in the worker loop.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace annulus::kernels {

[[noreturn]] void check_failed(const char* expression, const char* file, int line,
                               const std::string& values);

// "rank 2, step 17": prefixed to every check failure of the calling thread.
void set_check_context(std::string context);

class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  ((out << args), ...);
  return out.str();
}

}  // namespace annulus::kernels

// ANNULUS_CHECK(rows == n, "rows ", rows, " n ", n)
#define ANNULUS_CHECK(expression, ...)                                           \
  do {                                                                           \
    if (!(expression)) [[unlikely]]                                              \
      ::annulus::kernels::check_failed(#expression, __FILE__, __LINE__,          \
                                       ::annulus::kernels::concat(__VA_ARGS__)); \
  } while (false)
