// SPDX-License-Identifier: Apache-2.0
// How host code of this folder speaks to the CUDA runtime: every call checked, kernels launched as
// plain function calls. An error of the device throws DeviceError with the call, the runtime's name
// for it and its text.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/math.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw DeviceError(
      concat(what, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")"));
}

// A block of the kernel may have this much of device::launch_memory(): more than 48 KiB has to be
// asked for.
template <class... Parameters>
void allow_memory(void (*kernel)(Parameters...), int bytes) {
  if (bytes <= 48 << 10) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "shared memory of a kernel");
}

// Enqueues kernel(arguments...): grid and block in blocks and threads, with `bytes`
// of device::launch_memory() a block, which allow_memory() has allowed. An empty grid is nothing to
// do.
template <class... Parameters, class... Arguments>
void launch_with_memory(CudaQueue& queue, dim3 grid, dim3 block, int bytes,
                        void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (!queue.enqueues(CudaQueue::Work::kKernel, kernel, grid, block, bytes,
                      static_cast<const Parameters&>(arguments)...)) {
    return;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = queue.stream();
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
             "a kernel's launch");
}
template <class... Parameters, class... Arguments>
void launch(CudaQueue& queue, dim3 grid, dim3 block, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  launch_with_memory(queue, grid, block, 0, kernel, std::forward<Arguments>(arguments)...);
}

// Blocks of `threads` that cover n.
inline unsigned blocks_for(int64_t n, int64_t threads) {
  const int64_t blocks = ceil_div(n, threads);
  ANNULUS_CHECK(blocks >= 0 && blocks <= INT32_MAX, n, " in blocks of ", threads);
  return static_cast<unsigned>(blocks);
}

}  // namespace annulus::kernels
