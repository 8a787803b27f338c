// SPDX-License-Identifier: Apache-2.0
// `annulus-gpu-bench rank-of`: rank_of.h on a GPU.
#pragma once

#include <memory>
#include <string>

#include "bench/gpu.h"
#include "bench/rank_of.h"

namespace annulus::bench {

// Prints the report; device: its name.
absl::Status gpu_rank_of(const RankOfOptions& options, std::unique_ptr<kernels::CudaQueue> queue,
                         const std::string& device);

}  // namespace annulus::bench
