// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/memory.h"

#include "kernels/cuda/launch.h"

namespace annulus::kernels {

CudaMemory::CudaMemory(int64_t bytes, std::string_view what) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    throw DeviceError(concat("the GPU has no room for ", bytes, " bytes", what));
  }
  check_cuda(error, "cudaMalloc");
  data_ = static_cast<std::byte*>(data);
  bytes_ = bytes;
}

CudaMemory::~CudaMemory() {
  if (data_ != nullptr) cudaFree(data_);
}

}  // namespace annulus::kernels
