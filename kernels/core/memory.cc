// SPDX-License-Identifier: Apache-2.0
#include "kernels/core/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace annulus::kernels {

void AlignedFree::operator()(std::byte* p) const {
  std::free(p);
}

AlignedBytes allocate_aligned(int64_t bytes) {
  constexpr size_t kLine = 64, kHuge = size_t{2} << 20;
  size_t size = static_cast<size_t>(bytes), alignment = size >= kHuge ? kHuge : kLine;
  size = (size + alignment - 1) / alignment * alignment;
  void* p = std::aligned_alloc(alignment, size == 0 ? alignment : size);
  if (p == nullptr) throw std::bad_alloc();
  // Advice only: small pages are slower, not wrong.
  if (alignment == kHuge) static_cast<void>(madvise(p, size, MADV_HUGEPAGE));
  return AlignedBytes(static_cast<std::byte*>(p));
}

}  // namespace annulus::kernels
