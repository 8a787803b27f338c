// SPDX-License-Identifier: Apache-2.0
// Counts the bytes that a test binary asks of operator new, to show that a decoder stays modest.
#pragma once

#include <atomic>
#include <cstddef>

namespace annulus::parallel::testing {

extern std::atomic<size_t> allocated;

}  // namespace annulus::parallel::testing
