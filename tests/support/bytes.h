// SPDX-License-Identifier: Apache-2.0
// Builds byte strings for tests that write files.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

namespace annulus::testing {

inline void append_bytes(std::vector<std::byte>& out, const void* from, size_t count) {
  const size_t at = out.size();
  out.resize(at + count);
  if (count > 0) std::memcpy(out.data() + at, from, count);
}

// The value as it lies in memory.
template <class T>
void append(std::vector<std::byte>& out, const T& value) {
  append_bytes(out, &value, sizeof(value));
}

}  // namespace annulus::testing
