// SPDX-License-Identifier: Apache-2.0
// cuBLASLt on an emulated GPU: the functions of CublasLtApi as its manual defines them, in double
// precision, column by column. What it does not know stops the test.
#pragma once

#include <atomic>
#include <map>
#include <vector>

#include "kernels/cuda/cublaslt_api.h"

namespace annulus::testing {

struct CublasScript {
  std::atomic<bool> no_algorithm{false};
  // Algorithms on offer, the first choice first, and how long each one's product takes, in
  // milliseconds; -1: it is refused when it runs. One that is taken counts what it has done.
  std::vector<int> delays_ms = {0};
  std::map<int, int> runs;                               // by number
  std::atomic<int> products{0}, heuristics{0}, live{0};  // live: objects not destroyed yet
};
CublasScript& cublas_script();

const kernels::CublasLtApi& scripted_cublaslt();

}  // namespace annulus::testing
