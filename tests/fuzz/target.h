// SPDX-License-Identifier: Apache-2.0
// A fuzz target: one function that any bytes may be given to. What it may do is return; a crash, a
// sanitizer's report or a failed ANNULUS_CHECK is a finding. ANNULUS_FUZZ_TARGET(name) opens its
// body (`data`, `size`). Built with ANNULUS_SANITIZE=address it is libFuzzer's entry point, one
// program a target; else a plain function, which replay_test feeds with the committed corpus.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/core/check.h"

#ifdef ANNULUS_FUZZ
#define ANNULUS_FUZZ_ENTRY(name)                                            \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
    annulus::fuzz::name(data, size);                                        \
    return 0;                                                               \
  }
#else
#define ANNULUS_FUZZ_ENTRY(name)
#endif
#define ANNULUS_FUZZ_TARGET(name)              \
  namespace annulus::fuzz {                    \
  void name(const uint8_t* data, size_t size); \
  }                                            \
  ANNULUS_FUZZ_ENTRY(name)                     \
  void annulus::fuzz::name(const uint8_t* data, size_t size)

namespace annulus::fuzz {

inline std::span<const std::byte> bytes_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}
inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Where a reader wants a path: the bytes as a file that never reaches a disk.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    ANNULUS_CHECK(fd_ >= 0 && write(fd_, data, size) == static_cast<ssize_t>(size), "no memory");
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return kernels::concat("/proc/self/fd/", fd_); }

 private:
  int fd_;
};

// Splits length-prefixed messages (uint16, little-endian) off the front; the last may be short.
inline std::string_view next_message(std::string_view& rest) {
  if (rest.size() < 2) return rest = {}, rest;
  const size_t wanted = static_cast<uint8_t>(rest[0]) | size_t{static_cast<uint8_t>(rest[1])} << 8;
  rest.remove_prefix(2);
  const std::string_view message = rest.substr(0, wanted);
  rest.remove_prefix(message.size());
  return message;
}

// What every error that can reach a user must be: a matching code, and text.
template <class Status>
void check_error(const Status& status) {
  const auto code = status.raw_code();
  ANNULUS_CHECK(code != 2 && code != 13, "UNKNOWN or INTERNAL: ", std::string(status.message()));
  ANNULUS_CHECK(!status.message().empty(), "an error without words");
}

}  // namespace annulus::fuzz
