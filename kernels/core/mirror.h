// SPDX-License-Identifier: Apache-2.0
// Mirror: an array that the host keeps and changes at its end, and the device reads: page tables,
// positions, norms. sync() brings to the device what changed, in the queue's order, so that a long
// array costs a step what the step adds. Where the device reads the host's memory (CPUs) there is
// one copy. One owner, one thread. Errors: DeviceError (memory).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/core/check.h"

namespace annulus::kernels {

template <class Queue, class T>
class Mirror {
 public:
  Mirror() = default;
  explicit Mirror(std::vector<T> values) : values_(std::move(values)) {}

  const std::vector<T>& host() const { return values_; }
  void push_back(T value) { values_.push_back(value); }
  void set_back(T value) {
    values_.back() = value;
    same_ = std::min(same_, values_.size() - 1);
  }
  void truncate(size_t size) {
    values_.resize(size);
    same_ = std::min(same_, size);
  }

  void sync(Queue& queue) {
    if constexpr (!Queue::kHostMemory) {
      if (same_ == values_.size()) return;
      const int64_t wanted = bytes(values_.size());
      if (device_.bytes() < wanted) {
        const int64_t room = std::max(2 * device_.bytes(), wanted);
        queue.retire(std::exchange(device_, typename Queue::Memory(room)));
        same_ = 0;
      }
      queue.write(device_.data() + bytes(same_), values_.data() + same_, wanted - bytes(same_));
    }
    same_ = values_.size();
  }

  // Of the device's memory, which steps under way may read; the last call.
  void retire(Queue& queue) { queue.retire(std::exchange(device_, typename Queue::Memory())); }

  // As of the last sync(), which nothing may have followed.
  const T* data() const {
    ANNULUS_CHECK(same_ == values_.size(), same_, " of ", values_.size(), " values are there");
    if constexpr (Queue::kHostMemory) {
      return values_.data();
    } else {
      return reinterpret_cast<const T*>(device_.data());
    }
  }

 private:
  static int64_t bytes(size_t count) { return static_cast<int64_t>(count * sizeof(T)); }
  std::vector<T> values_;
  size_t same_ = 0;  // values that the device has too
  typename Queue::Memory device_;
};

}  // namespace annulus::kernels
