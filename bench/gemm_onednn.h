// SPDX-License-Identifier: Apache-2.0
// oneDNN beside our matmul, for bench/gemm.cc only: out[m, n] = x[m, k] w[k, n] with weights packed
// in the layout that oneDNN asks for, x and w both f32 or both bf16, out f32.
#pragma once

#include <cstdint>
#include <functional>

namespace annulus::bench {

bool have_onednn();
// One execution on random data, over copies of the weights in turn (so that small m reads memory).
// Empty where this build or this CPU cannot.
std::function<void()> onednn_matmul(int threads, bool bf16, int64_t m, int64_t k, int64_t n,
                                    int64_t copies);

}  // namespace annulus::bench
