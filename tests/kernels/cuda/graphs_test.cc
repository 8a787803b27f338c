// SPDX-License-Identifier: Apache-2.0
// What CudaQueue::repeat replays: exactly what would have been enqueued, with what was uploaded
// since.
#include "kernels/cuda/graphs.h"

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

#include "tests/kernels/cuda/device_array.h"

namespace annulus::kernels {
namespace {

class CudaGraphsTest : public CudaTest {
 protected:
  static constexpr int64_t kCount = 1000;

  static std::chrono::steady_clock::time_point soon() {
    return std::chrono::steady_clock::now() + std::chrono::seconds(60);
  }
  CudaGraphs::Counts counts() { return queue().graphs()->counts(); }

  // What comes back of `count` values that were uploaded, copied and, by `fill`, partly
  // overwritten.
  std::vector<int32_t> round_trip(uint64_t key, int32_t value, int64_t count = kCount,
                                  std::byte fill = std::byte{0}) {
    std::vector<int32_t> back(static_cast<size_t>(count), -1);
    const CudaQueue::Mark mark(queue());
    queue().repeat(key, [&] {
      const CudaQueue::Mark inner(queue());
      const std::vector<int32_t> values(static_cast<size_t>(count), value);
      const auto there = queue().upload(std::span<const int32_t>(values));
      auto* const copied = queue().scratch<int32_t>(count);
      queue().copy(reinterpret_cast<std::byte*>(copied),
                   reinterpret_cast<const std::byte*>(there.data()), 4 * count);
      queue().fill(reinterpret_cast<std::byte*>(copied), fill, 4);
      queue().download(std::span(back), copied);
    });
    queue().finish(soon());
    queue().finish(soon());  // an empty step: the next has the same turn of pinned memory
    return back;
  }
  static std::vector<int32_t> want(int32_t value, int64_t count = kCount, int32_t first = 0) {
    std::vector<int32_t> out(static_cast<size_t>(count), value);
    out[0] = first;
    return out;
  }
};

TEST_F(CudaGraphsTest, AReplayTakesWhatIsUploadedNow) {
  for (int32_t i = 0; i < 10; ++i) EXPECT_EQ(round_trip(7, 100 + i), want(100 + i)) << i;
  EXPECT_EQ(counts().captured, 1);
  EXPECT_EQ(counts().replayed, 8);
}

TEST_F(CudaGraphsTest, OtherArgumentsAreAnotherGraph) {
  for (int32_t i = 0; i < 3; ++i) EXPECT_EQ(round_trip(7, i), want(i));
  EXPECT_EQ(round_trip(7, 5, kCount, std::byte{1}), want(5, kCount, 0x01010101));
  EXPECT_EQ(round_trip(7, 6, kCount + 1), want(6, kCount + 1));
  EXPECT_EQ(counts().captured, 3);
  EXPECT_EQ(round_trip(7, 8), want(8));
  EXPECT_EQ(round_trip(7, 9, kCount, std::byte{1}), want(9, kCount, 0x01010101));
  EXPECT_EQ(counts().captured, 3);
  EXPECT_EQ(round_trip(8, 9), want(9)) << "of another key, for the first time";
  EXPECT_EQ(counts().captured, 3);
  EXPECT_EQ(counts().replayed, 3);
}

// A graph each for the two turns of pinned memory. The second is replayed while the device may not
// have begun with the first.
TEST_F(CudaGraphsTest, StepsUnderWayHaveTheirOwnUploads) {
  const CudaQueue::Mark mark(queue());
  const std::span<int32_t> copied(queue().scratch<int32_t>(kCount), kCount);
  std::vector<std::vector<int32_t>> back(20);
  std::vector<CudaQueue::Ticket> tickets;
  for (size_t step = 0; step < back.size(); ++step) {
    if (step >= 2) queue().finish(tickets[step - 2], soon());
    back[step].resize(kCount);
    queue().repeat(1, [&] {
      const CudaQueue::Mark inner(queue());
      const std::vector<int32_t> values(kCount, static_cast<int32_t>(step));
      const auto there = std::as_bytes(queue().upload(std::span<const int32_t>(values)));
      queue().copy(std::as_writable_bytes(copied).data(), there.data(), 4 * kCount);
    });
    queue().download(std::span(back[step]), copied.data());
    tickets.push_back(queue().close());
  }
  queue().finish(soon());
  for (size_t step = 0; step < back.size(); ++step)
    EXPECT_EQ(back[step], std::vector<int32_t>(kCount, static_cast<int32_t>(step)));
  EXPECT_EQ(counts().captured, 2);
  EXPECT_EQ(counts().replayed, 17);
}

TEST_F(CudaGraphsTest, NoKeyOrPhasesNoGraph) {
  for (int32_t i = 0; i < 3; ++i) EXPECT_EQ(round_trip(0, i), want(i));
  queue().phases().enable(true);
  for (int32_t i = 0; i < 3; ++i) EXPECT_EQ(round_trip(7, i), want(i));
  EXPECT_EQ(counts().captured, 0);
}

TEST_F(CudaGraphsTest, TheyAreBounded) {
  for (int32_t round = 0; round < 2; ++round) {
    for (uint64_t key = 1; key <= 200; ++key)
      EXPECT_EQ(round_trip(key, round, 10), want(round, 10));
  }
  EXPECT_EQ(counts().captured, 200);
  EXPECT_EQ(counts().kept, 128);
  EXPECT_EQ(round_trip(200, 5, 10), want(5, 10));
  EXPECT_EQ(counts().replayed, 1);
  EXPECT_EQ(round_trip(1, 5, 10), want(5, 10)) << "captured once more";
  EXPECT_EQ(counts().captured, 201);
  for (uint64_t key = 1000; key < 1300; ++key) round_trip(key, 1, 10);
  EXPECT_EQ(counts().kept, 0) << "their keys are forgotten";
  EXPECT_EQ(round_trip(200, 6, 10), want(6, 10));
  EXPECT_EQ(counts().captured, 201);
}

TEST_F(CudaGraphsTest, ABodyThatThrowsLeavesTheQueueAsItWas) {
  int calls = 0, throws_at = 2;
  const auto body = [&] {
    const CudaQueue::Mark inner(queue());
    const std::vector<int32_t> values(10, 1);
    queue().upload(std::span<const int32_t>(values));
    if (++calls == throws_at) throw std::runtime_error("here");
  };
  for (const int at : {2, 4}) {  // calls: enqueued; logged; logged, captured
    throws_at = at;
    if (at == 2) queue().repeat(1, body);
    EXPECT_THROW(queue().repeat(1, body), std::runtime_error);
  }
  EXPECT_EQ(counts().captured, 0);
  queue().repeat(1, body);
  queue().finish(soon());
  EXPECT_EQ(counts().captured, 1);
  EXPECT_EQ(round_trip(2, 3), want(3));
}

TEST_F(CudaGraphsTest, EndedOnesAreNotLaunched) {
  for (int32_t i = 0; i < 3; ++i) round_trip(7, i);
  queue().graphs()->end();
  EXPECT_EQ(counts().kept, 0);
  EXPECT_EQ(round_trip(8, 1), want(1)) << "what is only enqueued goes on";
  EXPECT_THROW(round_trip(8, 2), DeviceError);
}

}  // namespace
}  // namespace annulus::kernels
