// SPDX-License-Identifier: Apache-2.0
// The queue itself: scratch, uploads, and what the device finds wrong.
#include "kernels/cuda/queue.h"

#include <numeric>
#include <utility>
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

// Each has pinned memory to itself: steps of other sizes come while the device may not have begun
// with what the one before them uploads.
TEST_F(CudaQueueTest, StepsUnderWayKeepWhatTheyBringAndFetch) {
  constexpr size_t kSteps = 9;
  std::vector<std::vector<int32_t>> back(kSteps);
  std::vector<CudaQueue::Ticket> tickets;
  const auto first_of = [](size_t step) { return static_cast<int32_t>(1000000 * (step + 1)); };
  for (size_t step = 0; step < kSteps + 2; ++step) {
    if (step >= 2) {
      const size_t done = step - 2;
      queue().finish(tickets[done], soon());
      for (size_t i = 0; i < back[done].size(); ++i)
        ASSERT_EQ(back[done][i], first_of(done) + static_cast<int32_t>(i)) << "step " << done;
      if (done + 1 < kSteps) {
        EXPECT_EQ(back[done + 1].front(), -1) << "of a step that is not finished";
      }
    }
    if (step >= kSteps) continue;
    const CudaQueue::Mark mark(queue());
    std::vector<int32_t> values(1000 + 7919 * step % 5000);
    std::iota(values.begin(), values.end(), first_of(step));
    back[step].assign(values.size(), -1);
    const auto there = queue().upload(std::span<const int32_t>(values));
    queue().download(std::span(back[step]), there.data());
    tickets.push_back(queue().close());
  }
}

TEST_F(CudaQueueTest, AFinishedStepFinishesThoseBefore) {
  std::vector<int32_t> values(10, 5), first(10, 0), second(10, 0);
  const auto there = queue().upload(std::span<const int32_t>(values));
  queue().download(std::span(first), there.data());
  queue().retire(CudaQueue::Memory(100));
  queue().close();
  queue().download(std::span(second), there.data());
  const CudaQueue::Ticket last = queue().close();
  bool asked = false;
  while (!queue().wait(last, soon(), [&] { return std::exchange(asked, true); })) continue;
  queue().finish(last, soon());
  EXPECT_EQ(first, values);
  EXPECT_EQ(second, values);
  queue().finish(soon());  // nothing
}

TEST_F(CudaQueueTest, MoreMemoryThanThereIsIsADeviceError) {
  EXPECT_THROW(queue().scratch<std::byte>(int64_t{1} << 46), DeviceError);
  queue().finish(soon());  // and nothing else is broken
}

}  // namespace
}  // namespace annulus::kernels
