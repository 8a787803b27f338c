// SPDX-License-Identifier: Apache-2.0
// Integer arithmetic that every layer needs.
#pragma once

#include <concepts>
#include <type_traits>

namespace annulus::kernels {

// a / b, rounded up; a >= 0, b > 0.
template <std::integral A, std::integral B>
constexpr std::common_type_t<A, B> ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

}  // namespace annulus::kernels
