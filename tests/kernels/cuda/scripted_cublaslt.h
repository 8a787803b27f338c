// SPDX-License-Identifier: Apache-2.0
// cuBLASLt on an emulated GPU: the functions of CublasLtApi as its manual defines them, in double
// precision, column by column. What it does not know stops the test.
#pragma once

#include <atomic>

#include "kernels/cuda/cublaslt_api.h"

namespace annulus::testing {

struct CublasScript {
  std::atomic<bool> no_algorithm{false};
  std::atomic<int> products{0}, heuristics{0}, live{0};  // live: objects not destroyed yet
};
CublasScript& cublas_script();

const kernels::CublasLtApi& scripted_cublaslt();

}  // namespace annulus::testing
