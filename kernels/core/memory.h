// SPDX-License-Identifier: Apache-2.0
// Large buffers of kernels: aligned to 64 bytes, from 2 MiB on to huge pages (which the system is
// asked for). Out of memory is fatal (std::bad_alloc).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace annulus::kernels {

struct AlignedFree {
  void operator()(std::byte* p) const;
};
using AlignedBytes = std::unique_ptr<std::byte, AlignedFree>;

AlignedBytes allocate_aligned(int64_t bytes);

}  // namespace annulus::kernels
