// SPDX-License-Identifier: Apache-2.0
// The cuBLASLt that a test's GPU has: of this machine, or the scripted one.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/cuda/cublaslt_api.h"

namespace annulus::testing {

absl::StatusOr<const kernels::CublasLtApi*> gemm_api();
// What a sum of F8 products may err by, relative to the sizes of its terms.
double f8_unit();

}  // namespace annulus::testing
