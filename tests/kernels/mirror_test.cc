// SPDX-License-Identifier: Apache-2.0
#include "kernels/core/mirror.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

namespace annulus::kernels {
namespace {

// A device with memory of its own that counts what is brought to it.
struct FarQueue {
  static constexpr bool kHostMemory = false;
  class Memory {
   public:
    Memory() = default;
    explicit Memory(int64_t bytes) : data_(static_cast<size_t>(bytes)) {}
    std::byte* data() { return data_.data(); }
    const std::byte* data() const { return data_.data(); }
    int64_t bytes() const { return static_cast<int64_t>(data_.size()); }

   private:
    std::vector<std::byte> data_;
  };
  void write(std::byte* to, const void* from, int64_t bytes) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    written += bytes;
  }
  void retire(const Memory&) {}
  int64_t written = 0;
};

using FarMirror = Mirror<FarQueue, int32_t>;

void expect_equal(const FarMirror& mirror, const std::vector<int32_t>& want) {
  EXPECT_EQ(mirror.host(), want);
  EXPECT_EQ(std::vector<int32_t>(mirror.data(), mirror.data() + want.size()), want);
}

TEST(Mirror, BringsOnlyWhatChanged) {
  FarQueue queue;
  FarMirror mirror(std::vector<int32_t>{1, 2, 3, 4});
  mirror.sync(queue);
  EXPECT_EQ(queue.written, 16);
  mirror.push_back(5);  // no room: all of it once more, with room for as much again
  mirror.sync(queue);
  EXPECT_EQ(queue.written, 16 + 20);
  mirror.push_back(6);
  mirror.sync(queue);
  EXPECT_EQ(queue.written, 36 + 4);
  mirror.set_back(60);
  mirror.sync(queue);
  expect_equal(mirror, {1, 2, 3, 4, 5, 60});
  mirror.truncate(2);
  mirror.sync(queue);
  EXPECT_EQ(queue.written, 44);
  mirror.push_back(7);
  mirror.sync(queue);
  expect_equal(mirror, {1, 2, 7});
  EXPECT_EQ(queue.written, 48);
}

TEST(Mirror, WhatIsNotThereYetIsNotRead) {
  FarQueue queue;
  FarMirror mirror;
  mirror.push_back(1);
  EXPECT_DEATH(static_cast<void>(mirror.data()), "0 of 1 values are there");
}

}  // namespace
}  // namespace annulus::kernels
