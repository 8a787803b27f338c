// SPDX-License-Identifier: Apache-2.0
// CudaMemory: bytes of a GPU that last, of the one the calling thread uses; not zeroed. Giving it
// back waits for the GPU. Errors: DeviceError, completed by `what`, where there is no room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace annulus::kernels {

class CudaMemory {
 public:
  CudaMemory() = default;
  explicit CudaMemory(int64_t bytes, std::string_view what = "");
  ~CudaMemory();
  CudaMemory(CudaMemory&& other) noexcept { *this = std::move(other); }
  CudaMemory& operator=(CudaMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace annulus::kernels
