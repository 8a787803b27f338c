// SPDX-License-Identifier: Apache-2.0
// The cuDNN that a test's GPU has: of a real one the library, of the emulated one a script.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/cuda/cudnn_api.h"

namespace annulus::kernels {

absl::StatusOr<const CudnnApi*> cudnn_of_machine();

}  // namespace annulus::kernels
