// SPDX-License-Identifier: Apache-2.0
// run_ranks(n, fn): fn(rank) on n threads at once; waits for all and rethrows the exception of the
// lowest rank that threw. For tests of parallel/ and server/ with ranks in one process.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace annulus::testing {

inline void run_ranks(int32_t n, const std::function<void(int32_t rank)>& fn) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(n));
  {
    std::vector<std::jthread> threads;
    for (int32_t rank = 0; rank < n; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          fn(rank);
        } catch (...) {
          errors[static_cast<size_t>(rank)] = std::current_exception();
        }
      });
    }
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace annulus::testing
