// SPDX-License-Identifier: Apache-2.0
// The queue itself: scratch, uploads, and what the device finds wrong.
#include "kernels/cuda/queue.h"

#include <numeric>
#include <vector>

#include "tests/kernels/cuda/device_array.h"

namespace annulus::kernels {
namespace {

using CudaQueueTest = CudaTest;

constexpr auto soon = [] { return std::chrono::steady_clock::now() + std::chrono::seconds(60); };

TEST_F(CudaQueueTest, ScratchComesBackAndKeepsItsPlace) {
  void *first = nullptr, *large = nullptr;
  for (int round = 0; round < 3; ++round) {
    const CudaQueue::Mark outer(queue());
    void* a = queue().scratch<float>(100);
    void* b = nullptr;
    {
      const CudaQueue::Mark inner(queue());
      b = queue().scratch<float>(1 << 20);  // beyond the first block
    }
    void* c = queue().scratch<float>(1 << 20);
    EXPECT_EQ(b, c) << "what the inner mark held is free again";
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % 256, 0u);
    if (round > 0) {
      EXPECT_EQ(a, first);
      EXPECT_EQ(c, large);
    }
    first = a;
    large = c;
  }
  EXPECT_LT(queue().scratch_peak_bytes(), 7 << 20);
}

TEST_F(CudaQueueTest, UploadsOutliveTheirSource) {
  const CudaQueue::Mark mark(queue());
  std::vector<std::span<const int32_t>> uploads;
  for (int32_t i = 0; i < 50; ++i) {
    std::vector<int32_t> values(static_cast<size_t>(1 + 1000 * i));
    std::iota(values.begin(), values.end(), i);
    uploads.push_back(queue().upload(std::span<const int32_t>(values)));
  }
  for (int32_t i = 0; i < 50; ++i) {
    std::vector<int32_t> back(uploads[static_cast<size_t>(i)].size());
    check_cuda(
        cudaMemcpyAsync(back.data(), uploads[static_cast<size_t>(i)].data(),
                        back.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, queue().stream()),
        "back");
    queue().finish(soon());
    EXPECT_EQ(back.front(), i);
    EXPECT_EQ(back.back(), i + 1000 * i);
  }
}

TEST_F(CudaQueueTest, MoreMemoryThanThereIsIsADeviceError) {
  EXPECT_THROW(queue().scratch<std::byte>(int64_t{1} << 46), DeviceError);
  queue().finish(soon());  // and nothing else is broken
}

}  // namespace
}  // namespace annulus::kernels
