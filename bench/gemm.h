// SPDX-License-Identifier: Apache-2.0
// `annulus-bench gemm`: matmul() over a table of rows x layers x weight formats: time, rate against
// the peaks measured in the same run, weight bytes read per second, the largest error against the
// double reference, and, where the build found oneDNN, the same shape through oneDNN with packed
// weights.
#pragma once

namespace annulus::bench {

int bench_gemm(int argc, char** argv);

}  // namespace annulus::bench
