// SPDX-License-Identifier: Apache-2.0
// Arrays in the memory of a GPU, real or emulated, and back.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/tensor.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

template <class T>
class DeviceArray {
 public:
  DeviceArray(CudaQueue& queue, std::span<const T> values) : queue_(queue), size_(values.size()) {
    void* data = nullptr;
    check_cuda(cudaMalloc(&data, std::max(values.size_bytes(), size_t{1})), "an array");
    data_ = static_cast<T*>(data);
    check_cuda(cudaMemcpyAsync(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice,
                               queue.stream()),
               "to the device");
    wait();
  }
  DeviceArray(CudaQueue& queue, const std::vector<T>& values)
      : DeviceArray(queue, std::span<const T>(values)) {}
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::span<const T> span() const { return {data_, size_}; }
  // After everything that was enqueued.
  std::vector<T> host() const {
    std::vector<T> out(size_);
    check_cuda(cudaMemcpyAsync(out.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost,
                               queue_.stream()),
               "from the device");
    wait();
    return out;
  }

 private:
  void wait() const { queue_.finish(std::chrono::steady_clock::now() + std::chrono::seconds(60)); }
  CudaQueue& queue_;
  size_t size_;
  T* data_ = nullptr;
};

// A queue on the first GPU; tests are skipped where there is none.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto device = find_cuda_device(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    queue_ = std::make_unique<CudaQueue>(device->index);
  }
  CudaQueue& queue() { return *queue_; }

 private:
  std::unique_ptr<CudaQueue> queue_;
};

}  // namespace annulus::kernels
