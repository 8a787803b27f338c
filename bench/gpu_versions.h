// SPDX-License-Identifier: Apache-2.0
// `annulus-gpu-bench versions`: what the engine would open here. One line each, name and version,
// or what its loader says where there is none; tests/gpu.sh holds them to deploy/packages.
#pragma once

namespace annulus::bench {

void print_gpu_versions();

}  // namespace annulus::bench
