// SPDX-License-Identifier: Apache-2.0
// What a product computed in fp32 may differ by from the one in double precision.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/reference/ops.h"

namespace annulus::kernels {

// got[m, n] = x[m, k] w[n, k]^T with every element within (k + 1) * unit of the sum of its terms'
// sizes: k products are summed in any order, each rounded by `unit` relative.
inline void expect_product(const std::vector<float>& got, const std::vector<float>& x,
                           const std::vector<float>& weights, int64_t m, int64_t n, int64_t k,
                           double unit) {
  ASSERT_EQ(got.size(), static_cast<size_t>(m * n));
  const auto want = reference_matmul({x.data(), m, k}, {weights.data(), n, k});
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < n; ++c) {
      double size = 0;
      for (int64_t i = 0; i < k; ++i)
        size += std::abs(static_cast<double>(x[static_cast<size_t>(r * k + i)]) *
                         static_cast<double>(weights[static_cast<size_t>(c * k + i)]));
      ASSERT_NEAR(got[static_cast<size_t>(r * n + c)], want.at(r, c),
                  static_cast<double>(k + 1) * unit * size + 1e-37)
          << m << " x " << n << " x " << k << ", row " << r << ", column " << c;
    }
}

}  // namespace annulus::kernels
