// SPDX-License-Identifier: Apache-2.0
// CudaQueue: what an op needs to run on one GPU: a stream, scratch memory on the device and a way
// to bring small host arrays there. Work only enqueues; finish() waits. One thread owns a queue.
// close() ends a step: what is enqueued behind it is the next one's, while the device may still run
// the one before. Steps share scratch, for they run on one stream, in order; the pinned memory that
// the host writes and reads meanwhile each has to itself.
// Scratch is a bump arena as CpuQueue's: memory from scratch() lives until the Mark that surrounds
// it ends, in stream order, and the arena keeps its peak size, so that a step in steady state
// allocates nothing and every step of the same shape sees the same addresses (CUDA graphs).
// Pointers that ops take are readable by the device: tensors, positions, page tables and indices
// alike; upload() makes them so. Errors: DeviceError.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/phase.h"
#include "kernels/cuda/graphs.h"
#include "kernels/cuda/memory.h"

namespace annulus::kernels {

struct CudaDevice {
  int index = 0;
  std::string name;
};

// FailedPrecondition where this machine cannot run the kernels, saying what is missing: a driver, a
// GPU, or one of compute capability 9.0 (Hopper).
absl::StatusOr<CudaDevice> find_cuda_device(int index);

std::string named(const CudaDevice& device);  // "GPU 0 (NVIDIA H100 80GB HBM3)"

// What it has free beside this process's context, which is made where there is none; the thread
// uses this GPU afterwards. FailedPrecondition where it cannot: not even a context may have room.
absl::StatusOr<int64_t> free_cuda_bytes(const CudaDevice& device);

// Why the GPU of this thread cannot go on in this process (an illegal address, memory that ECC gave
// up); empty where it can. Waits for what it still runs.
std::string cuda_fault();

// For what the calling thread does from now on; a queue does it for its own.
void use_cuda_device(int index);

class CudaMatrix;
struct CudaInput;
struct ConstCudaInput;
class Gemm;
struct CublasLtApi;
class CudnnAttention;
struct CudnnApi;

class CudaQueue {
 public:
  using Matrix = CudaMatrix;  // what matmul multiplies by
  using Input = CudaInput;    // and what it multiplies: matrix.h
  using ConstInput = ConstCudaInput;
  static constexpr bool kHostMemory = false;

  using Memory = CudaMemory;

  explicit CudaQueue(int device);
  ~CudaQueue();
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  // From here on matmul asks cuBLASLt first; api outlives the queue.
  void use(const CublasLtApi& api);
  Gemm* gemm() const { return gemm_.get(); }  // null: matmul's own kernel
  // From here on attend() gives cuDNN the segments that it takes; api outlives the queue.
  void use(const CudnnApi& api);
  CudnnAttention* cudnn() const { return cudnn_.get(); }  // null: attend()'s own kernels
  PhaseClock& phases() { return phases_; }

  template <class T>
  T* scratch(int64_t count) {
    return static_cast<T*>(device_.allocate(count * static_cast<int64_t>(sizeof(T))));
  }
  int64_t scratch_peak_bytes() const { return device_.peak(); }

  // A copy of `values` in scratch on the device, enqueued; `values` may be gone at once. Pinned
  // memory holds them until the step is finished.
  template <class T>
  std::span<const T> upload(std::span<const T> values) {
    const auto bytes = static_cast<int64_t>(values.size_bytes());
    std::byte* const to = scratch<std::byte>(bytes);
    write(to, values.data(), bytes);
    return {reinterpret_cast<const T*>(to), values.size()};
  }
  // The same in two halves, for values that are made in place: pinned memory of this step, and its
  // way to the device.
  std::byte* stage(int64_t bytes);
  void send(std::byte* to, const std::byte* staged, int64_t bytes);
  // The same into memory of the device.
  void write(std::byte* to, const void* from, int64_t bytes);
  // to = from, of the device; there when the step is finished, until which `to` must live.
  template <class T>
  void download(std::span<T> to, const T* from) {
    read(to.data(), from, static_cast<int64_t>(to.size_bytes()));
  }
  void copy(std::byte* to, const std::byte* from, int64_t bytes);
  void fill(std::byte* to, std::byte value, int64_t bytes);

  // body() enqueues; its work is launched as one CUDA graph where it may come again. Of a key that
  // has not been seen the body just enqueues: modules are loaded, algorithms chosen, memory taken.
  // Later it is called to log what it would enqueue: where that is, to the byte, what a graph of
  // the key does, the graph is launched, else the body is called once more and captured. So what
  // differs from call to call has to be in memory that upload() fills, and the body changes nothing
  // beside this queue. Only enqueued where it does not repeat(): key 0, a clock of phases that
  // runs, graphs switched off.
  // With transfers in the body, ranks must ask alike: the same keys in the same order, for NCCL
  // wants a transfer captured on all its ranks or on none.
  void repeat(uint64_t key, const std::function<void()>& body);
  bool repeats(uint64_t key) const { return key != 0 && uses_graphs_ && !phases_.enabled(); }
  void use_graphs(bool use) { uses_graphs_ = use; }  // they are used at first
  const std::shared_ptr<CudaGraphs>& graphs() const { return graphs_; }
  // Whoever enqueues asks first, naming what and all its arguments. False: it was only logged.
  enum class Work : uint8_t { kKernel, kUpload, kDownload, kCopy, kFill, kProduct, kTransfer };
  template <class... Parts>
  bool enqueues(Work work, const Parts&... parts) {
    if (mode_ != Mode::kLog) [[likely]]
      return true;
    log(work);
    log((size_t{0} + ... + sizeof(Parts)));  // NOLINT(bugprone-sizeof-expression): of pointers, too
    (log(parts), ...);
    return false;
  }
  bool repeating() const { return repeating_; }  // inside repeat()'s body, on whatever call
  bool captures() const { return mode_ == Mode::kCapture; }
  bool records() const { return mode_ != Mode::kEnqueue; }  // logs or captures

  // Called while finish() waits and once when it has: progress and errors of transfers, which it
  // throws. Empty = none.
  void set_poll(std::function<void()> poll) { poll_ = std::move(poll); }

  // Gives the memory back once the step is finished, for what was enqueued may use it. A cudaFree
  // waits for the device: it comes when that has nothing to do, or for many at once.
  void retire(Memory memory);

  // Of one step.
  struct Ticket {
    int64_t number = 0;
  };
  Ticket close();
  // True: the step has run. False: `woken` said so first; it is asked now and then, empty = never.
  // DeviceError at the deadline, or for what the device found.
  bool wait(Ticket step, std::chrono::steady_clock::time_point deadline,
            const std::function<bool()>& woken = {});
  bool ended(Ticket step);  // wait() would not
  // Waits for the step, and brings what it downloads. Steps are finished in order: those before it
  // are, too.
  void finish(Ticket step, std::chrono::steady_clock::time_point deadline);
  // All that was enqueued.
  void finish(std::chrono::steady_clock::time_point deadline) { finish(close(), deadline); }

  // From the next step on, how long the device had nothing to do before a step's first upload, of
  // all that are finished; asked for while nothing is enqueued.
  void measure_gaps() { measures_ = true; }
  double gaps_us() const { return gaps_us_; }

 private:
  enum class Mode : uint8_t { kEnqueue, kLog, kCapture };
  enum class Place : uint8_t { kDevice, kPinned };
  // Blocks of memory, each twice the one before; a block is never moved.
  class Arena {
   public:
    explicit Arena(Place place) : place_(place) {}
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    void* allocate(int64_t bytes);  // 256-byte aligned
    int64_t peak() const { return peak_; }

    struct Position {
      size_t block = 0;
      int64_t used = 0, before = 0;  // in the block, in all blocks before it
    };
    Position position() const { return at_; }
    void rewind(Position to) { at_ = to; }

   private:
    struct Block {
      std::byte* data = nullptr;
      int64_t bytes = 0;
    };
    Place place_;
    std::vector<Block> blocks_;
    Position at_;
    int64_t peak_ = 0;
  };

 public:
  // Scratch taken after a Mark is given back when it ends; marks nest.
  class Mark {
   public:
    explicit Mark(CudaQueue& queue) : queue_(queue), at_(queue.device_.position()) {}
    ~Mark() { queue_.device_.rewind(at_); }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;

   private:
    CudaQueue& queue_;
    Arena::Position at_;
  };

 private:
  void read(void* to, const void* from, int64_t bytes);
  void settle();  // what was enqueued has run, or never will

  class Event {
   public:
    Event();
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    cudaEvent_t get() const { return event_; }

   private:
    cudaEvent_t event_ = nullptr;
  };
  // What read() has fetched into pinned memory, to be copied out by finish(): a copy into other
  // memory would hold the host until the device is there.
  struct Fetched {
    void* to;
    const void* from;
    size_t bytes;
  };
  struct Step {
    int64_t number = 0, turn = 0;
    std::unique_ptr<Event> begun = std::make_unique<Event>(), ended = std::make_unique<Event>();
    Arena pinned{Place::kPinned};
    Arena repeated{Place::kPinned};  // of repeat(): its places depend on nothing that came before
    std::vector<Fetched> fetched;
    std::vector<Memory> retired;
  };
  Step& filling();
  void note_gap(Step& step);
  cudaGraph_t capture(const std::function<void()>& body);
  template <class Part>
  void log(Part part) {
    static_assert(std::is_trivially_copyable_v<Part>);
#if __has_builtin(__builtin_clear_padding)  // clang 14 has none: equal work may look new
    __builtin_clear_padding(&part);
#endif
    const auto* const bytes = reinterpret_cast<const std::byte*>(&part);
    log_.insert(log_.end(), bytes, bytes + sizeof(Part));  // NOLINT(bugprone-sizeof-expression)
  }

  cudaStream_t stream_ = nullptr;
  int multiprocessors_ = 0;
  Arena device_{Place::kDevice};
  std::unique_ptr<Step> filling_;           // what is enqueued now; null: nothing since close()
  std::deque<std::unique_ptr<Step>> open_;  // closed, in order
  std::vector<std::unique_ptr<Step>> spare_;
  int64_t closed_ = 0;
  std::vector<Memory> unused_;  // of finished steps
  bool measures_ = false;
  std::unique_ptr<Event> last_ended_;  // of the step that was finished last; null: none measured
  double gaps_us_ = 0;
  std::unique_ptr<Gemm> gemm_;
  std::unique_ptr<CudnnAttention> cudnn_;
  std::function<void()> poll_;
  PhaseClock phases_;
  bool uses_graphs_ = true, repeating_ = false;
  Mode mode_ = Mode::kEnqueue;
  CudaGraphs::Log log_;  // keeps its memory
  std::shared_ptr<CudaGraphs> graphs_ = std::make_shared<CudaGraphs>();
};

}  // namespace annulus::kernels
