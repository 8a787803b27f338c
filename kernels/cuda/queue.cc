// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/queue.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kFirstBlock = int64_t{1} << 20;
// finish(): most decode steps end within a millisecond; whoever waits longer leaves its core.
constexpr std::chrono::microseconds kSpin{20}, kSleep{50}, kPollEvery{2000};

}  // namespace

absl::StatusOr<CudaDevice> find_cuda_device(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("no GPU can be used: ", cudaGetErrorString(error),
                     "; CUDA needs an NVIDIA GPU and a driver for CUDA 13 (nvidia-smi says which "
                     "one is there); --device cpu needs neither"));
  }
  if (index < 0 || index >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no GPU ", index, "; this machine has ", count));
  }
  cudaDeviceProp properties = {};
  if (const cudaError_t broken = cudaGetDeviceProperties(&properties, index);
      broken != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("GPU ", index, " cannot be used: ", cudaGetErrorString(broken)));
  }
  if (properties.major != 9 || properties.minor != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "GPU ", index, " (", properties.name, ") has compute capability ", properties.major, ".",
        properties.minor, "; the kernels are built for 9.0 (H100, H200)"));
  }
  return CudaDevice{index, properties.name};
}

CudaQueue::Arena::~Arena() {
  for (const Block& block : blocks_) {
    if (place_ == Place::kDevice) {
      cudaFree(block.data);
    } else {
      cudaFreeHost(block.data);
    }
  }
}

void* CudaQueue::Arena::allocate(int64_t bytes) {
  bytes = ceil_div(std::max(bytes, int64_t{1}), kAlignment) * kAlignment;
  while (at_.block < blocks_.size() && at_.used + bytes > blocks_[at_.block].bytes) {
    at_.before += blocks_[at_.block].bytes;
    ++at_.block;
    at_.used = 0;
  }
  if (at_.block == blocks_.size()) {
    const int64_t last = blocks_.empty() ? kFirstBlock / 2 : blocks_.back().bytes;
    Block block;
    block.bytes = std::max(2 * last, bytes);
    void* data = nullptr;
    const auto size = static_cast<size_t>(block.bytes);
    if (place_ == Place::kDevice) {
      if (cudaMalloc(&data, size) != cudaSuccess) {
        throw DeviceError(concat("the GPU has no room for ", size,
                                 " bytes of scratch: lower --kv-rows or --workspace-mib"));
      }
    } else {
      check_cuda(cudaMallocHost(&data, size), "pinned memory for uploads");
    }
    block.data = static_cast<std::byte*>(data);
    blocks_.push_back(block);
  }
  void* out = blocks_[at_.block].data + at_.used;
  at_.used += bytes;
  peak_ = std::max(peak_, at_.before + at_.used);
  return out;
}

std::string cuda_fault() {
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

void use_cuda_device(int index) {
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
}

CudaQueue::CudaQueue(int device) {
  use_cuda_device(device);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
             "the size of the GPU");
  phases_.settle_with([this] { settle(); });
}

CudaQueue::~CudaQueue() {
  cudaStreamSynchronize(stream_);  // memory that kernels use goes next
  cudaStreamDestroy(stream_);
}

void CudaQueue::use(const CublasLtApi& api) {
  gemm_ = std::make_unique<Gemm>(api);
}

void CudaQueue::write(std::byte* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<size_t>(bytes);
  void* staged = pinned_.allocate(bytes);
  std::memcpy(staged, from, size);
  check_cuda(cudaMemcpyAsync(to, staged, size, cudaMemcpyHostToDevice, stream_), "an upload");
}

void CudaQueue::read(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<size_t>(bytes);
  void* staged = pinned_.allocate(bytes);
  check_cuda(cudaMemcpyAsync(staged, from, size, cudaMemcpyDeviceToHost, stream_), "a download");
  fetched_.push_back({to, staged, size});
}

void CudaQueue::copy(std::byte* to, const std::byte* from, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
      "a copy");
}

void CudaQueue::fill(std::byte* to, std::byte value, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemsetAsync(to, std::to_integer<int>(value), static_cast<size_t>(bytes), stream_),
             "a fill");
}

// Ends also where peers are lost, or after a minute: finish() says so to whoever waits there.
// Throws nothing: destructors call it.
void CudaQueue::settle() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point began = Clock::now();
  Clock::time_point polled = began;
  while (cudaStreamQuery(stream_) == cudaErrorNotReady) {
    const Clock::time_point now = Clock::now();
    if (now - began > std::chrono::minutes(1)) return;
    if (now - began > kPollEvery) std::this_thread::sleep_for(kSleep);
    if (!poll_ || now - polled < kPollEvery) continue;
    try {
      poll_();
    } catch (...) {
      return;
    }
    polled = now;
  }
}

void CudaQueue::finish(std::chrono::steady_clock::time_point deadline) {
  using Clock = std::chrono::steady_clock;
  // Where this throws, nothing is copied to what the caller may have left.
  const std::vector<Fetched> fetched = std::exchange(fetched_, {});
  const Clock::time_point began = Clock::now();
  for (Clock::time_point polled = began;;) {
    const cudaError_t error = cudaStreamQuery(stream_);
    if (error == cudaSuccess) break;
    if (error != cudaErrorNotReady) check_cuda(error, "the GPU");
    const Clock::time_point now = Clock::now();
    if (now > deadline) {
      throw DeviceError(
          concat("the GPU has not finished by the deadline, in phase ", name(phases_.current())));
    }
    if (now - began < kSpin) continue;
    if (poll_ && now - polled > kPollEvery) {
      poll_();
      polled = now;
    }
    std::this_thread::sleep_for(kSleep);
  }
  if (poll_) poll_();  // a stream also ends where its transfers were aborted
  for (const Fetched& f : fetched) std::memcpy(f.to, f.from, f.bytes);
  pinned_.rewind({});
  retired_.clear();
}

}  // namespace annulus::kernels
