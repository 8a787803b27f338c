// SPDX-License-Identifier: Apache-2.0
// CpuQueue: what an op needs to run on CPUs: a thread pool, scratch memory and the instruction set
// chosen once per process. Work runs at the call. One owner thread calls ops; inside parallel_for
// the pool's threads help. Scratch is a bump arena: memory from scratch() lives until the Mark that
// surrounds it ends, and the arena keeps its peak size (no allocation in steady state). The device
// reads the host's memory: what moves data between the two is a copy at most.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/phase.h"
#include "kernels/core/tensor.h"

namespace annulus::kernels {

enum class CpuIsa : uint8_t { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };
inline constexpr CpuIsa kCpuIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512,
                                      CpuIsa::kAvx512Bf16, CpuIsa::kAmx};
const char* name(CpuIsa isa);  // "portable", "avx2", "avx512", "avx512-bf16", "amx"
absl::StatusOr<CpuIsa> parse_cpu_isa(std::string_view text);  // "auto" is detect_cpu_isa()
CpuIsa detect_cpu_isa();  // the best this CPU and operating system run

class PackedMatrix;
class ThreadPool;

class CpuQueue {
 public:
  using Matrix = PackedMatrix;  // what matmul multiplies by
  using Input = Tensor;         // and what it multiplies
  using ConstInput = ConstTensor;
  static constexpr bool kHostMemory = true;

  // Bytes that last: reserved here, committed by the operating system at first touch, zero until
  // then. `what` completes the DeviceError where there is no room.
  class Memory {
   public:
    Memory() = default;
    explicit Memory(int64_t bytes, std::string_view what = "");
    ~Memory();
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
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

  // threads >= 1 counts the calling thread. isa is capped by detect_cpu_isa().
  explicit CpuQueue(int threads, CpuIsa isa = detect_cpu_isa());
  ~CpuQueue();
  CpuQueue(const CpuQueue&) = delete;
  CpuQueue& operator=(const CpuQueue&) = delete;

  CpuIsa isa() const { return isa_; }
  int threads() const;

  // body(index) for every index in [0, tasks), on all threads, dynamically; returns when all are
  // done. thread in [0, threads()) is for per-thread scratch. The owner thread runs poll() between
  // its tasks. An exception thrown by body or poll is rethrown here.
  void parallel_for(int64_t tasks, const std::function<void(int64_t index, int thread)>& body);

  // Progress of transfers while the CPU computes; called only from the owner thread. Empty = none.
  void set_poll(std::function<void()> poll);
  void poll() {
    if (poll_) poll_();
  }

  PhaseClock& phases() { return phases_; }

  template <class T>
  T* scratch(int64_t count) {
    return static_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }
  int64_t scratch_peak_bytes() const { return peak_; }

  // `values` as the device reads them; they must live as long as that.
  template <class T>
  std::span<const T> upload(std::span<const T> values) {
    return values;
  }
  // to = from, of the device; there after finish().
  template <class T>
  void download(std::span<T> to, const T* from) {
    std::copy_n(from, to.size(), to.data());
  }
  void copy(std::byte* to, const std::byte* from, int64_t bytes) { std::copy_n(from, bytes, to); }
  void fill(std::byte* to, std::byte value, int64_t bytes) { std::fill_n(to, bytes, value); }
  // Everything has run at the call.
  struct Ticket {};
  Ticket close() { return {}; }
  bool wait(Ticket, std::chrono::steady_clock::time_point, const std::function<bool()>&) {
    return true;
  }
  bool ended(Ticket) { return true; }
  void finish(Ticket, std::chrono::steady_clock::time_point) {}
  void finish(std::chrono::steady_clock::time_point) {}
  // Gives the memory back once what was enqueued has run.
  void retire(Memory) {}

  // Scratch taken after a Mark is given back when it ends; marks nest.
  class Mark {
   public:
    explicit Mark(CpuQueue& queue) : queue_(queue), block_(queue.block_), used_(queue.used_) {}
    ~Mark() {
      queue_.block_ = block_;
      queue_.used_ = used_;
    }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;

   private:
    CpuQueue& queue_;
    size_t block_;
    int64_t used_;
  };

 private:
  struct Block;
  void* allocate(int64_t bytes);  // 64-byte aligned

  CpuIsa isa_;
  std::unique_ptr<ThreadPool> pool_;
  std::function<void()> poll_;
  PhaseClock phases_;
  std::vector<std::unique_ptr<Block>> blocks_;
  size_t block_ = 0;
  int64_t used_ = 0, peak_ = 0;
};

}  // namespace annulus::kernels
