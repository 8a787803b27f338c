// SPDX-License-Identifier: Apache-2.0
// An array that ends where memory does: reading or writing one byte more is a fault on the spot,
// also for instructions that AddressSanitizer does not see (loads of AMX tiles, assembly).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace annulus::kernels {

template <class T>
class Guarded {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  Guarded() = default;
  explicit Guarded(size_t size) : size_(size) {  // zeros
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = (size * sizeof(T) + page - 1) / page * page;
    void* const first = mmap(nullptr, bytes + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (first == MAP_FAILED) throw std::bad_alloc();
    memory_ = {static_cast<std::byte*>(first), Unmap{bytes + page}};
    if (bytes > 0 && mprotect(first, bytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = reinterpret_cast<T*>(memory_.get() + bytes - size * sizeof(T));
  }

  Guarded(std::span<const T> values) : Guarded(values.size()) {  // NOLINT: a copy of them
    std::copy(values.begin(), values.end(), begin());
  }
  Guarded(const std::vector<T>& values) : Guarded(std::span(values)) {}  // NOLINT
  Guarded(const Guarded& other) : Guarded(std::span<const T>(other.data_, other.size_)) {}
  Guarded(Guarded&&) = default;
  Guarded& operator=(Guarded other) {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  struct Unmap {
    size_t bytes = 0;
    void operator()(std::byte* first) const { munmap(first, bytes); }
  };
  std::unique_ptr<std::byte, Unmap> memory_;
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace annulus::kernels
