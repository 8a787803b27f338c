// SPDX-License-Identifier: Apache-2.0
#include "tests/parallel/sharding/allocations.h"

#include <cstdlib>
#include <new>

namespace annulus::parallel::testing {

std::atomic<size_t> allocated{0};

}  // namespace annulus::parallel::testing

void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  annulus::parallel::testing::allocated += bytes;
  return std::malloc(bytes);
}
void* operator new(size_t bytes) {
  if (void* memory = operator new(bytes, std::nothrow)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
