// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

namespace annulus::kernels {
namespace {

class QueueTest : public testing::TestWithParam<int> {};

TEST_P(QueueTest, CoversEachIndexOnce) {
  CpuQueue queue(GetParam());
  EXPECT_EQ(queue.threads(), GetParam());
  for (int64_t tasks : {0, 1, 2, 3, 17, 1000}) {
    std::vector<std::atomic<int>> hits(static_cast<size_t>(tasks));
    std::atomic<bool> thread_in_range{true};
    queue.parallel_for(tasks, [&](int64_t i, int thread) {
      hits[static_cast<size_t>(i)].fetch_add(1);
      if (thread < 0 || thread >= queue.threads()) thread_in_range = false;
    });
    for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
    EXPECT_TRUE(thread_in_range.load());
  }
}

// Short jobs back to back find workers spinning, asleep and on their way in or out.
TEST_P(QueueTest, ManyJobsWithPauses) {
  CpuQueue queue(GetParam());
  std::vector<int64_t> values(8);
  for (int job = 0; job < 2000; ++job) {
    if (job % 100 == 0) std::this_thread::sleep_for(std::chrono::microseconds(job));
    queue.parallel_for(8, [&](int64_t i, int) { values[static_cast<size_t>(i)] += i; });
  }
  for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 2000 * i);
}

TEST_P(QueueTest, RethrowsFromBodyAndGoesOn) {
  CpuQueue queue(GetParam());
  for (int64_t bad : {0, 3, 99}) {
    EXPECT_THROW(queue.parallel_for(100,
                                    [&](int64_t i, int) {
                                      if (i == bad) throw std::runtime_error("task");
                                    }),
                 std::runtime_error);
    std::atomic<int> done{0};
    queue.parallel_for(10, [&](int64_t, int) { done.fetch_add(1); });
    EXPECT_EQ(done.load(), 10);
  }
}

TEST_P(QueueTest, PollsOnTheOwnerAndRethrows) {
  CpuQueue queue(GetParam());
  const auto owner = std::this_thread::get_id();
  int polls = 0;
  bool foreign = false;
  queue.set_poll([&] {
    ++polls;
    foreign |= std::this_thread::get_id() != owner;
  });
  // Until the owner had its turn: it takes at least one task of a job that outlasts its wake-up.
  for (int job = 0; job < 1000 && polls == 0; ++job)
    queue.parallel_for(64, [](int64_t, int) { std::this_thread::yield(); });
  EXPECT_GT(polls, 0);
  EXPECT_FALSE(foreign);
  queue.set_poll([] { throw std::runtime_error("peer gone"); });
  const auto thrown = [&] {
    for (int job = 0; job < 1000; ++job) {
      try {
        queue.parallel_for(64, [](int64_t, int) { std::this_thread::yield(); });
      } catch (const std::runtime_error&) {
        return true;
      }
    }
    return false;
  };
  EXPECT_TRUE(thrown());
  queue.set_poll({});
  queue.poll();
  queue.parallel_for(2, [](int64_t, int) {});
}

INSTANTIATE_TEST_SUITE_P(Threads, QueueTest, testing::Values(1, 2, 3, 8),
                         testing::PrintToStringParamName());

TEST(Scratch, MarksNestAndMemoryIsReused) {
  CpuQueue queue(1);
  CpuQueue::Mark outer(queue);
  auto* first = queue.scratch<float>(100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
  std::fill_n(first, 100, 1.0f);
  float* inner_pointer = nullptr;
  {
    CpuQueue::Mark inner(queue);
    inner_pointer = queue.scratch<float>(100);
    EXPECT_GE(inner_pointer, first + 100);
    std::fill_n(queue.scratch<float>(1 << 20), 1 << 20, 2.0f);  // a block of its own
    EXPECT_EQ(std::count(first, first + 100, 1.0f), 100);       // earlier pointers stay valid
  }
  EXPECT_EQ(queue.scratch<float>(100), inner_pointer);
}

TEST(Scratch, PeakIsKeptAndPiecesBecomeOneBlock) {
  CpuQueue queue(1);
  for (int pass = 0; pass < 3; ++pass) {
    CpuQueue::Mark mark(queue);
    for (int i = 0; i < 5; ++i) {
      auto* p = queue.scratch<std::byte>(700'000);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 64, 0u);
      std::fill_n(p, 700'000, std::byte{7});
    }
  }
  EXPECT_GE(queue.scratch_peak_bytes(), 5 * 700'000);
  EXPECT_LT(queue.scratch_peak_bytes(), 5 * 2 * 700'000);
}

TEST(Isa, NamesParse) {
  EXPECT_EQ(*parse_cpu_isa("auto"), detect_cpu_isa());
  EXPECT_EQ(*parse_cpu_isa("portable"), CpuIsa::kPortable);
  EXPECT_EQ(*parse_cpu_isa(name(detect_cpu_isa())), detect_cpu_isa());
  EXPECT_EQ(parse_cpu_isa("mmx").status().code(), absl::StatusCode::kInvalidArgument);
  if (detect_cpu_isa() < CpuIsa::kAvx512Bf16) {
    EXPECT_EQ(parse_cpu_isa("avx512-bf16").status().code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(CpuQueue(1, CpuIsa::kPortable).isa(), CpuIsa::kPortable);
  for (const CpuIsa isa : kCpuIsas) {
    EXPECT_EQ(CpuQueue(1, isa).isa(), std::min(isa, detect_cpu_isa()));
  }
}

}  // namespace
}  // namespace annulus::kernels
