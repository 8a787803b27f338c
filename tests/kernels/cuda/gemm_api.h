// SPDX-License-Identifier: Apache-2.0
// The cuBLASLt that a test's GPU has: of this machine, or the scripted one.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/cuda/cublaslt_api.h"

namespace annulus::testing {

absl::StatusOr<const kernels::CublasLtApi*> gemm_api();

}  // namespace annulus::testing
