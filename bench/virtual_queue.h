// SPDX-License-Identifier: Apache-2.0
// VirtualQueue: a device on which the engine runs without work and, but for the positions of rows,
// without memory. Ops compute nothing and tell a meter, if there is one, what they would have done;
// downloads are zeros; what is left of a step is what a rank decides: its plan, its layouts, its
// ops, its communicator's calls. Any number of ranks of any size fit into one thread. Used by the
// trace test (communicator calls) and by annulus-bench simulate (time). Scratch addresses are
// handed out and never followed; Memory is real where something is written to it. One owner, one
// thread.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/core/phase.h"
#include "kernels/ops.h"
#include "kernels/sampling.h"

namespace annulus::kernels {

// Of a linear layer nothing but its shape.
class VirtualMatrix {
 public:
  VirtualMatrix() = default;
  VirtualMatrix(int64_t n, int64_t k, double bytes_per_weight = 2, bool begins_layer = false)
      : n_(n), k_(k), bytes_per_weight_(bytes_per_weight), begins_layer_(begins_layer) {}
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t bytes() const {
    return static_cast<int64_t>(static_cast<double>(n_ * k_) * bytes_per_weight_);
  }
  Tensor input(Tensor room) const { return room; }
  double bytes_per_weight() const { return bytes_per_weight_; }
  bool begins_layer() const { return begins_layer_; }  // QKV: a meter tells layers apart by it

 private:
  int64_t n_ = 0, k_ = 0;
  double bytes_per_weight_ = 2;
  bool begins_layer_ = false;
};

// Told of every op, in order, by the queue's thread.
class VirtualMeter {
 public:
  virtual ~VirtualMeter() = default;
  virtual void matmul(int64_t rows, const VirtualMatrix& w) = 0;
  // Positions of queries and keys can be read.
  virtual void attend(ConstTensor q, std::span<const Segment> segments, const KvFormat& format,
                      const Partial& acc) = 0;
  virtual void merge(int64_t partial_elements) = 0;
  // Everything else: activations (f32 in this engine) and other bytes, read or written.
  virtual void rows(int64_t activations, int64_t bytes) = 0;
};

class VirtualQueue {
 public:
  static constexpr bool kHostMemory = false;

  // Address space; a page of it exists once something was written there.
  class Memory {
   public:
    Memory() = default;
    explicit Memory(int64_t bytes, std::string_view = "") : bytes_(bytes) {
      const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
      void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (at == MAP_FAILED) throw DeviceError("no address space for a virtual device");
      data_ = {static_cast<std::byte*>(at), [size](std::byte* p) { munmap(p, size); }};
    }
    std::byte* data() const { return data_.get(); }
    int64_t bytes() const { return bytes_; }

   private:
    std::shared_ptr<std::byte> data_;  // shared by the copies that layers keep of one norm
    int64_t bytes_ = 0;
  };

  using Matrix = VirtualMatrix;
  using Input = Tensor;
  using ConstInput = ConstTensor;

  // Uploads live as long as the innermost mark around them.
  class Mark {
   public:
    explicit Mark(VirtualQueue& queue) : queue_(queue), uploads_(queue.uploads_.size()) {}
    ~Mark() { queue_.uploads_.resize(uploads_); }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;

   private:
    VirtualQueue& queue_;
    size_t uploads_;
  };

  explicit VirtualQueue(VirtualMeter* meter = nullptr) : meter_(meter) {}
  VirtualMeter* meter() { return meter_; }

  PhaseClock& phases() { return phases_; }
  void set_poll(const std::function<void()>&) {}

  template <class T>
  T* scratch(int64_t count) {
    return reinterpret_cast<T*>(take(count * static_cast<int64_t>(sizeof(T))));
  }
  template <class T>
  std::span<const T> upload(std::span<const T> values) {
    if constexpr (std::is_same_v<T, int32_t>) {  // positions, among others
      uploads_.emplace_back(values.begin(), values.end());
      return uploads_.back();
    } else {
      return {scratch<T>(static_cast<int64_t>(values.size())), values.size()};
    }
  }
  template <class T>
  void download(std::span<T> to, const T*) {
    std::fill(to.begin(), to.end(), T{});
  }
  void write(std::byte* to, const void* from, int64_t bytes) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void copy(std::byte*, const std::byte*, int64_t) {}
  void fill(std::byte*, std::byte, int64_t) {}
  struct Ticket {};
  Ticket close() { return {}; }
  bool wait(Ticket, std::chrono::steady_clock::time_point, const std::function<bool()>&) {
    return true;
  }
  bool ended(Ticket) { return true; }
  void finish(Ticket, std::chrono::steady_clock::time_point) {}
  void finish(std::chrono::steady_clock::time_point) {}
  void retire(const Memory&) {}

 private:
  static std::byte* take(int64_t bytes) {  // an address that faults if it is followed
    static thread_local uintptr_t next = uintptr_t{1} << 56;
    const uintptr_t at = next;
    next += (static_cast<uintptr_t>(bytes) + 511) / 256 * 256;
    return reinterpret_cast<std::byte*>(at);  // NOLINT(performance-no-int-to-ptr)
  }

  VirtualMeter* meter_;
  PhaseClock phases_;
  std::vector<std::vector<int32_t>> uploads_;
};

namespace virtual_queue {

inline void rows(VirtualQueue& queue, int64_t activations, int64_t bytes = 0) {
  if (queue.meter() != nullptr) queue.meter()->rows(activations, bytes);
}
inline int64_t elements(const ConstTensor& x) {
  return x.rows * x.cols;
}

}  // namespace virtual_queue

template <>
inline void embed(VirtualQueue& queue, Tensor out, const WeightSource&, std::span<const int32_t>) {
  virtual_queue::rows(queue, 2 * virtual_queue::elements(out));
}
template <>
inline void rms_norm(VirtualQueue& queue, Tensor, ConstTensor x, const float*, float) {
  virtual_queue::rows(queue, 2 * virtual_queue::elements(x));
}
template <>
inline void matmul(VirtualQueue& queue, Tensor out, ConstTensor x, const VirtualQueue::Matrix& w) {
  ANNULUS_CHECK(x.cols == w.k() && out.cols == w.n() && out.rows == x.rows, out.rows, " x ",
                out.cols, " of ", x.rows, " x ", x.cols, " by ", w.n(), " x ", w.k());
  if (queue.meter() != nullptr) queue.meter()->matmul(x.rows, w);
}
template <>
inline void rope(VirtualQueue& queue, Tensor x, ConstTensor, int32_t, RopePairing) {
  virtual_queue::rows(queue, 2 * virtual_queue::elements(x));
}
template <>
inline void swiglu(VirtualQueue& queue, Tensor out, ConstTensor) {
  virtual_queue::rows(queue, 3 * virtual_queue::elements(out));
}
template <>
inline void add(VirtualQueue& queue, Tensor x, ConstTensor) {
  virtual_queue::rows(queue, 3 * virtual_queue::elements(x));
}
template <>
inline void convert(VirtualQueue& queue, Tensor out, ConstTensor x) {
  virtual_queue::rows(queue, virtual_queue::elements(x),
                      virtual_queue::elements(out) * size_bytes(out.dtype));
}
template <>
inline void gather_rows(VirtualQueue& queue, Tensor out, ConstTensor, std::span<const int32_t>) {
  virtual_queue::rows(queue, 2 * virtual_queue::elements(out));
}
// Not metered: a host's work on CPUs, and little beside the head's on GPUs.
template <>
inline void sample(VirtualQueue&, const Logits&, std::span<const LogitWish>, const SampleOut&) {}
template <>
inline void resolve_ids(VirtualQueue&, std::span<int32_t>, std::span<const int32_t>,
                        const int32_t*) {}
template <>
inline void clear(VirtualQueue& queue, Partial acc) {
  virtual_queue::rows(queue, 0, 4 * acc.elements());
}
template <>
inline void attend(VirtualQueue& queue, ConstTensor q, std::span<const Segment> segments,
                   const KvFormat& format, float, Partial acc) {
  if (queue.meter() != nullptr) queue.meter()->attend(q, segments, format, acc);
}
template <>
inline void merge(VirtualQueue& queue, Partial into, Partial) {
  if (queue.meter() != nullptr) queue.meter()->merge(into.elements());
}
template <>
inline void kv_append(VirtualQueue& queue, ConstTensor k, ConstTensor, std::byte*,
                      std::span<const int64_t>, const KvFormat& format) {
  virtual_queue::rows(queue, 2 * virtual_queue::elements(k), k.rows * format.row_bytes());
}
template <>
inline void kv_pack(VirtualQueue& queue, std::byte*, std::span<const KvRows> all,
                    const KvFormat& format) {
  int64_t count = 0;
  for (const KvRows& one : all) count += one.count;
  virtual_queue::rows(queue, 0, 2 * count * format.row_bytes());
}

}  // namespace annulus::kernels
