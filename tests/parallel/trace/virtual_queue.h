// SPDX-License-Identifier: Apache-2.0
// VirtualQueue: a device on which the engine runs without memory and without work. Addresses are
// handed out and never followed, ops do nothing, downloads are zeros; what is left of a step is
// what a rank decides: its plan, its layouts, its communicator's calls. Any number of ranks of any
// size fit into one thread. One owner, one thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "kernels/attention.h"
#include "kernels/core/phase.h"
#include "kernels/ops.h"

namespace annulus::kernels {

class VirtualQueue {
 public:
  static constexpr bool kHostMemory = false;

  class Memory {
   public:
    Memory() = default;
    explicit Memory(int64_t bytes, std::string_view = "") : data_(take(bytes)), bytes_(bytes) {}
    std::byte* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

   private:
    std::byte* data_ = nullptr;
    int64_t bytes_ = 0;
  };

  // Of a linear layer nothing but its shape.
  class Matrix {
   public:
    Matrix() = default;
    Matrix(int64_t n, int64_t k) : n_(n), k_(k) {}
    int64_t n() const { return n_; }
    int64_t k() const { return k_; }
    int64_t bytes() const { return 2 * n_ * k_; }

   private:
    int64_t n_ = 0, k_ = 0;
  };

  class Mark {
   public:
    explicit Mark(VirtualQueue&) {}
    ~Mark() {}  // not trivial: a mark that nobody names is no mistake
  };

  PhaseClock& phases() { return phases_; }
  void set_poll(const std::function<void()>&) {}

  template <class T>
  T* scratch(int64_t count) {
    return reinterpret_cast<T*>(take(count * static_cast<int64_t>(sizeof(T))));
  }
  template <class T>
  std::span<const T> upload(std::span<const T> values) {
    return {scratch<T>(static_cast<int64_t>(values.size())), values.size()};
  }
  template <class T>
  void download(std::span<T> to, const T*) {
    std::fill(to.begin(), to.end(), T{});
  }
  void write(std::byte*, const void*, int64_t) {}
  void copy(std::byte*, const std::byte*, int64_t) {}
  void fill(std::byte*, std::byte, int64_t) {}
  void finish(std::chrono::steady_clock::time_point) {}

 private:
  static std::byte* take(int64_t bytes) {  // an address that faults if it is followed
    static thread_local uintptr_t next = uintptr_t{1} << 56;
    const uintptr_t at = next;
    next += (static_cast<uintptr_t>(bytes) + 511) / 256 * 256;
    return reinterpret_cast<std::byte*>(at);
  }

  PhaseClock phases_;
};

template <>
inline void embed(VirtualQueue&, Tensor, const WeightSource&, std::span<const int32_t>) {}
template <>
inline void rms_norm(VirtualQueue&, Tensor, ConstTensor, const float*, float) {}
template <>
inline void matmul(VirtualQueue&, Tensor out, ConstTensor x, const VirtualQueue::Matrix& w) {
  ANNULUS_CHECK(x.cols == w.k() && out.cols == w.n() && out.rows == x.rows, out.rows, " x ",
                out.cols, " of ", x.rows, " x ", x.cols, " by ", w.n(), " x ", w.k());
}
template <>
inline void rope(VirtualQueue&, Tensor, ConstTensor, int32_t, RopePairing) {}
template <>
inline void swiglu(VirtualQueue&, Tensor, ConstTensor) {}
template <>
inline void add(VirtualQueue&, Tensor, ConstTensor) {}
template <>
inline void convert(VirtualQueue&, Tensor, ConstTensor) {}
template <>
inline void gather_rows(VirtualQueue&, Tensor, ConstTensor, std::span<const int32_t>) {}
template <>
inline void clear(VirtualQueue&, Partial) {}
template <>
inline void attend(VirtualQueue&, ConstTensor, std::span<const Segment>, const KvFormat&, float,
                   Partial) {}
template <>
inline void merge(VirtualQueue&, Partial, Partial) {}
template <>
inline void kv_append(VirtualQueue&, ConstTensor, ConstTensor, std::byte*, std::span<const int64_t>,
                      const KvFormat&) {}
template <>
inline void kv_pack(VirtualQueue&, std::byte*, std::span<const KvRows>, const KvFormat&) {}

}  // namespace annulus::kernels
