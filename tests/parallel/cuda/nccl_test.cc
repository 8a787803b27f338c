// SPDX-License-Identifier: Apache-2.0
// NcclWorld with a scripted NCCL on emulated GPUs: what the groups move, and how they end.
#include "parallel/comm_nccl.h"

#include <gtest/gtest.h>

#include <barrier>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/check.h"
#include "parallel/ring.h"
#include "tests/parallel/cuda/scripted_nccl.h"
#include "tests/support/run_ranks.h"

namespace annulus::parallel {
namespace {

using annulus::testing::nccl_script;
using kernels::CudaQueue;
using Clock = std::chrono::steady_clock;
using std::chrono::seconds;

using RankFn = std::function<void(NcclWorld& world, Groups<CudaQueue> groups, CudaQueue& queue)>;

// fn on every rank of a connected world; nobody leaves before all have ended.
void on_ranks(Topology topology, const RankFn& fn, const NcclOptions& options = {}) {
  const int32_t n = topology.world();
  std::vector<std::string> addresses(static_cast<size_t>(n));
  std::barrier all(n);
  annulus::testing::run_ranks(n, [&](int32_t me) {
    CudaQueue queue(0);
    const auto world =
        NcclWorld::create(annulus::testing::scripted_nccl(), topology, me, 1, options).value();
    addresses[static_cast<size_t>(me)] = world->address();
    all.arrive_and_wait();
    const absl::Status connected = world->connect(addresses);
    ASSERT_TRUE(connected.ok()) << connected;
    queue.set_poll([&] { world->groups().cp->progress(); });
    fn(*world, world->groups(), queue);
    all.arrive_and_wait();
  });
  EXPECT_EQ(nccl_script().live, 0);
  EXPECT_EQ(nccl_script().live_memory, 0);
}

class Nccl : public ::testing::Test {
 protected:
  void TearDown() override {
    nccl_script().async_error = false;
    nccl_script().abort_hangs = false;
    nccl_script().version = 22809;
    nccl_script().without_window = nccl_script().fails_window = 0;
    nccl_script().no_memory = false;
  }
};

std::vector<int32_t> words(int64_t count, int32_t first) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), first);
  return out;
}

// Host arrays to the device and back.
ConstBytes there(CudaQueue& queue, const std::vector<int32_t>& values) {
  return std::as_bytes(queue.upload(std::span<const int32_t>(values)));
}
Bytes room(CudaQueue& queue, size_t count) {
  return std::as_writable_bytes(
      std::span(queue.scratch<int32_t>(static_cast<int64_t>(count)), count));
}
std::vector<int32_t> back(CudaQueue& queue, Bytes bytes) {
  std::vector<int32_t> out(bytes.size() / 4);
  queue.download(std::span(out), reinterpret_cast<const int32_t*>(bytes.data()));
  queue.finish(Clock::now() + seconds(60));
  return out;
}

TEST_F(Nccl, GathersAndExchangesUnequalAndEmptyParts) {
  on_ranks({1, 3}, [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
    Communicator<CudaQueue>& ring = *groups.cp;
    const int32_t me = ring.rank();
    for (int64_t round = 0; round < 4; ++round) {
      // Rank r gives r * round words.
      std::vector<int64_t> bytes;
      std::vector<int32_t> want;
      for (int32_t r = 0; r < 3; ++r) {
        bytes.push_back(4 * r * round);
        const std::vector<int32_t> part = words(r * round, 100 * r);
        want.insert(want.end(), part.begin(), part.end());
      }
      const Bytes all = room(queue, want.size());
      ring.all_gather(queue, there(queue, words(me * round, 100 * me)), all, bytes,
                      {.step = round, .what = "gather"});
      EXPECT_EQ(back(queue, all), want);

      // From rank a to rank b: a + 2 b words, none where a + b is 1.
      const auto count = [](int32_t a, int32_t b) { return a + b == 1 ? 0 : a + 2 * b; };
      std::vector<ConstBytes> send;
      std::vector<Bytes> receive;
      for (int32_t r = 0; r < 3; ++r) {
        send.push_back(there(queue, words(count(me, r), 1000 * me + r)));
        receive.push_back(room(queue, static_cast<size_t>(count(r, me))));
      }
      ring.all_to_all(queue, send, receive, {.step = round, .what = "partials"});
      for (int32_t r = 0; r < 3; ++r) {
        EXPECT_EQ(back(queue, receive[static_cast<size_t>(r)]), words(count(r, me), 1000 * r + me));
      }
    }
  });
}

TEST_F(Nccl, RotateShowsEveryPayloadOnce) {
  on_ranks({1, 4}, [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
    Communicator<CudaQueue>& ring = *groups.cp;
    const int32_t me = ring.rank();
    const std::vector<int64_t> bytes = {40, 0, 12, 4};
    const auto payload = [&](int32_t rank) {
      return words(bytes[static_cast<size_t>(rank)] / 4, 10 * rank);
    };
    PingPong buffers;
    for (Bytes& buffer : buffers.buffer) buffer = room(queue, 10);
    for (int32_t round = 0; round < 3; ++round) {
      // A visit only enqueues: what it saw is copied on the device and compared at the end.
      std::vector<Bytes> seen;
      std::vector<int32_t> origins;
      rotate(ring, queue, there(queue, payload(me)), bytes, buffers,
             {.step = round, .what = "kv ring"}, [&](int32_t origin, ConstBytes at) {
               origins.push_back(origin);
               seen.push_back(room(queue, at.size() / 4));
               queue.copy(seen.back().data(), at.data(), static_cast<int64_t>(at.size()));
             });
      for (int32_t hop = 0; hop < 4; ++hop) {
        EXPECT_EQ(origins[static_cast<size_t>(hop)], (me + 4 - hop) % 4);
        EXPECT_EQ(back(queue, seen[static_cast<size_t>(hop)]), payload((me + 4 - hop) % 4));
      }
    }
  });
}

TEST_F(Nccl, AllReduceSumsOverTheTpGroupAlone) {
  on_ranks({2, 2}, [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
    // World rank = cp_rank * 2 + tp_rank.
    const int32_t me = groups.world->rank();
    std::vector<float> values(300);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(1000 * me) + static_cast<float>(i);
    const auto sent = queue.upload(std::span<const float>(values));
    const std::span<float> data(const_cast<float*>(sent.data()), sent.size());
    groups.tp->all_reduce(queue, data, {.step = 1, .what = "tp sum"});
    std::vector<float> sum(values.size());
    queue.download(std::span(sum), sent.data());
    queue.finish(Clock::now() + seconds(60));
    const int32_t other = me ^ 1;
    for (size_t i = 0; i < sum.size(); ++i) {
      EXPECT_EQ(sum[i], static_cast<float>(1000 * (me + other)) + 2 * static_cast<float>(i));
    }
  });
}

TEST_F(Nccl, AGroupOfOneCopies) {
  on_ranks({1, 1}, [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
    Communicator<CudaQueue>& ring = *groups.cp;
    const Bytes hop = room(queue, 5), all = room(queue, 5), mine = room(queue, 5);
    ring.await(queue,
               ring.exchange(queue, there(queue, words(5, 1)), 0, hop, 0, {.what = "kv ring"}));
    const std::vector<int64_t> bytes = {20};
    ring.all_gather(queue, there(queue, words(5, 2)), all, bytes, {.what = "gather"});
    const std::vector<ConstBytes> send = {there(queue, words(5, 3))};
    ring.all_to_all(queue, send, {&mine, 1}, {.what = "partials"});
    EXPECT_EQ(back(queue, hop), words(5, 1));
    EXPECT_EQ(back(queue, all), words(5, 2));
    EXPECT_EQ(back(queue, mine), words(5, 3));
    EXPECT_EQ(ring.bytes_sent(), 0);
  });
}

// What ends a step: the text of the DeviceError.
std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const kernels::DeviceError& error) {
    return error.what();
  }
  return "no error";
}

// Rank 0 waits for a hop that rank 1 never sends.
void wait_for_nothing(Groups<CudaQueue> groups, CudaQueue& queue, Clock::time_point deadline) {
  const Bytes buffer = room(queue, 4);
  groups.cp->await(queue, groups.cp->exchange(queue, there(queue, words(4, 0)), 1, buffer, 1,
                                              {.step = 9, .layer = 3, .what = "kv ring"}));
  std::vector<int32_t> out(4);  // a download does not hold the host before finish() does
  queue.download(std::span(out), reinterpret_cast<const int32_t*>(buffer.data()));
  queue.finish(deadline);
}

TEST_F(Nccl, ALostPeerEndsTheStepAtTheDeadline) {
  on_ranks({1, 2}, [](NcclWorld& world, Groups<CudaQueue> groups, CudaQueue& queue) {
    if (groups.cp->rank() == 1) return;
    const std::string error = error_of(
        [&] { wait_for_nothing(groups, queue, Clock::now() + std::chrono::milliseconds(50)); });
    EXPECT_NE(error.find("has not finished by the deadline"), std::string::npos) << error;
    world.abort("rank 1 is lost");
    EXPECT_NE(error_of([&] { groups.cp->progress(); }).find("rank 1 is lost"), std::string::npos);
    queue.set_poll(nullptr);
    queue.finish(Clock::now() + seconds(10));  // the kernel has ended: memory can be given back
  });
}

TEST_F(Nccl, AnAbortFromAnotherThreadEndsAWait) {
  on_ranks({1, 2}, [](NcclWorld& world, Groups<CudaQueue> groups, CudaQueue& queue) {
    if (groups.cp->rank() == 1) return;
    std::jthread control([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      world.abort("rank 1 is lost");
    });
    const std::string error =
        error_of([&] { wait_for_nothing(groups, queue, Clock::now() + seconds(60)); });
    EXPECT_NE(error.find("rank 1 is lost"), std::string::npos) << error;
    EXPECT_NE(error_of([&] {
                groups.cp->all_reduce(queue, std::span<float>(), {.what = "tp sum"});
              }).find("rank 1 is lost"),
              std::string::npos);
  });
}

TEST_F(Nccl, AnAsynchronousErrorEndsTheStepWithNcclsReason) {
  on_ranks({1, 2}, [](NcclWorld& world, Groups<CudaQueue> groups, CudaQueue& queue) {
    if (groups.cp->rank() == 1) return;
    const std::string error = error_of([&] {
      const Bytes buffer = room(queue, 4);
      Transfer hop = groups.cp->exchange(queue, there(queue, words(4, 0)), 1, buffer, 1,
                                         {.step = 9, .layer = 3, .what = "kv ring"});
      groups.cp->await(queue, std::move(hop));
      nccl_script().async_error = true;
      queue.finish(Clock::now() + seconds(60));
    });
    EXPECT_NE(error.find("remote process exited"), std::string::npos) << error;
    EXPECT_NE(error.find("cp rank 0 of 2"), std::string::npos) << error;
    nccl_script().async_error = false;
    world.abort("the step failed");
    queue.set_poll(nullptr);
    queue.finish(Clock::now() + seconds(10));
  });
}

TEST_F(Nccl, APeerThatDoesNotComeIsUnavailable) {
  CudaQueue queue(0);
  const Topology topology{1, 2};
  NcclOptions options;
  options.connect_limit = std::chrono::milliseconds(50);
  const auto& api = annulus::testing::scripted_nccl();
  const auto world = NcclWorld::create(api, topology, 0, 1, options).value();
  const auto absent = NcclWorld::create(api, topology, 1, 1, options).value();
  const absl::Status status = world->connect(std::vector{world->address(), absent->address()});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_NE(status.message().find("has not answered"), absl::string_view::npos) << status;
  const auto later = NcclWorld::create(api, topology, 1, 2, options).value();
  EXPECT_EQ(world->connect(std::vector{world->address(), later->address()}).code(),
            absl::StatusCode::kFailedPrecondition);
}

// Limits for a machine that stands still for seconds.
const NcclOptions kPatient = {.connect_limit = seconds(120), .symmetric_limit = seconds(60)};

class NcclSymmetric : public Nccl {
 protected:
  void SetUp() override {
    nccl_script().version = kNcclSymmetricOldest;
    (void)annulus::testing::take_nccl_sums();
  }
};

// Values of this rank, summed over the TP group in `data`: small integers, so that sums are exact.
void expect_sum(Groups<CudaQueue> groups, CudaQueue& queue, std::span<float> data, int32_t round) {
  const auto value = [&](int32_t rank, size_t i) {
    return static_cast<float>(1000 * rank + round + static_cast<int32_t>(i));
  };
  std::vector<float> values(data.size()), sum(data.size());
  const int32_t ranks = groups.tp->size();
  for (size_t i = 0; i < values.size(); ++i) values[i] = value(groups.tp->rank(), i);
  queue.write(reinterpret_cast<std::byte*>(data.data()), values.data(),
              static_cast<int64_t>(data.size_bytes()));
  groups.tp->all_reduce(queue, data, {.step = round, .what = "tp sum"});
  queue.download(std::span(sum), static_cast<const float*>(data.data()));
  queue.finish(Clock::now() + seconds(60));
  for (size_t i = 0; i < sum.size(); ++i) {
    float want = 0;
    for (int32_t r = 0; r < ranks; ++r) want += value(r, i);
    ASSERT_EQ(sum[i], want) << i << " in round " << round;
  }
}

std::span<float> symmetric(Communicator<CudaQueue>& group, size_t count) {
  auto* const memory = group.symmetric_memory(static_cast<int64_t>(count * sizeof(float)));
  return {reinterpret_cast<float*>(memory), memory == nullptr ? 0 : count};
}

TEST_F(NcclSymmetric, SmallSumsOfTheTpGroupGoThere) {
  NcclOptions options = kPatient;
  options.symmetric_bytes = 400;
  const auto sums = [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
    for (auto* group : {groups.cp, groups.world}) EXPECT_EQ(group->symmetric_memory(4), nullptr);
    EXPECT_EQ(groups.tp->symmetric_memory(401), nullptr);
    for (const size_t count : {size_t{100}, size_t{1}, size_t{37}}) {
      const std::span<float> data = symmetric(*groups.tp, count);
      ASSERT_NE(data.data(), nullptr);
      EXPECT_EQ(data.data(), symmetric(*groups.tp, 100).data());
      for (int32_t round = 0; round < 5; ++round) {
        expect_sum(groups, queue, data, round);
        // The others in between, on another communicator.
        expect_sum(groups, queue, {queue.scratch<float>(300), 300}, round);
      }
    }
    EXPECT_EQ(groups.tp->bytes_sent(), 5 * (400 + 4 + 148) + 15 * 1200 + 4);
  };
  on_ranks({2, 2}, sums, options);
  const auto counted = annulus::testing::take_nccl_sums();
  using Counts = std::map<size_t, int64_t>;
  EXPECT_EQ(counted.symmetric, (Counts{{400, 20}, {4, 20}, {148, 20}}));
  EXPECT_EQ(counted.plain, (Counts{{4, 4}, {1200, 60}}));  // the first: that all have memory
}

TEST_F(NcclSymmetric, NothingOfItBelow230OrWhereItIsOff) {
  const auto plain = [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
    EXPECT_EQ(groups.tp->symmetric_memory(4), nullptr);
    expect_sum(groups, queue, {queue.scratch<float>(9), 9}, 1);
  };
  NcclOptions off;
  off.symmetric_bytes = 0;
  on_ranks({2, 1}, plain, off);
  nccl_script().version = kNcclSymmetricOldest - 1;
  on_ranks({2, 1}, plain);
  const auto counted = annulus::testing::take_nccl_sums();
  EXPECT_TRUE(counted.symmetric.empty());
  EXPECT_EQ(counted.plain, (std::map<size_t, int64_t>{{36, 4}}));  // nobody asked who has memory
}

// Ranks that wait for one that failed, or never came, give up; all go on without, and keep neither
// the communicator nor the memory.
TEST_F(NcclSymmetric, OneRankWithoutMemoryMeansNone) {
  NcclOptions options = kPatient;
  const auto plain = [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
    EXPECT_EQ(groups.tp->symmetric_memory(4), nullptr);
    expect_sum(groups, queue, {queue.scratch<float>(9), 9}, 1);  // all ranks are connected
    EXPECT_EQ(nccl_script().live, 2 * 3);                        // world's and TP's
    EXPECT_EQ(nccl_script().live_memory, 0);
    groups.tp->progress();
  };
  const auto expect_none = [&](const char* said) {
    ::testing::internal::CaptureStderr();
    on_ranks({3, 1}, plain, options);
    const std::string told = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(told.find(said), std::string::npos) << told;
    EXPECT_TRUE(annulus::testing::take_nccl_sums().symmetric.empty());
  };
  nccl_script().without_window = 0b111;
  expect_none("");
  nccl_script().without_window = 0;
  nccl_script().fails_window = 0b100;
  expect_none("without symmetric memory: internal error");
  nccl_script().fails_window = 0;
  options.symmetric_limit = seconds(1);
  nccl_script().without_window = 0b010;
  expect_none("without symmetric memory: NCCL has not answered by the deadline");
  nccl_script().without_window = 0;
  nccl_script().no_memory = true;
  expect_none("without symmetric memory: unhandled cuda error");
}

// Rank 0 registers, rank 1 is asked whether all have done so.
TEST_F(NcclSymmetric, AnAbortEndsARegistrationThatWaits) {
  nccl_script().without_window = 0b10;
  std::vector<std::string> addresses(2);
  std::barrier all(2);
  const Clock::time_point began = Clock::now();
  annulus::testing::run_ranks(2, [&](int32_t me) {
    CudaQueue queue(0);
    const auto world =
        NcclWorld::create(annulus::testing::scripted_nccl(), {2, 1}, me, 1, kPatient).value();
    addresses[static_cast<size_t>(me)] = world->address();
    all.arrive_and_wait();
    std::jthread control([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      world->abort("rank 2 is lost");
    });
    const absl::Status status = world->connect(addresses);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_NE(status.message().find("rank 2 is lost"), absl::string_view::npos) << status;
  });
  EXPECT_LT(Clock::now() - began, kPatient.symmetric_limit / 2);
  EXPECT_EQ(nccl_script().live, 0);
  EXPECT_EQ(nccl_script().live_memory, 0);
}

// The scripted NCCL frees at once: what the GPU still does there must have ended.
TEST_F(NcclSymmetric, AnAbortEndsASumThatWaits) {
  on_ranks(
      {2, 1},
      [](NcclWorld& world, Groups<CudaQueue> groups, CudaQueue& queue) {
        if (groups.tp->rank() == 1) return;
        std::jthread control([&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          world.abort("rank 1 is lost");
        });
        const std::span<float> data = symmetric(*groups.tp, 100);
        ASSERT_FALSE(data.empty());
        const std::string error = error_of([&] { expect_sum(groups, queue, data, 1); });
        EXPECT_NE(error.find("rank 1 is lost"), std::string::npos) << error;
        queue.fill(reinterpret_cast<std::byte*>(data.data()), std::byte{1}, 400);
      },
      kPatient);
}

TEST_F(NcclSymmetric, AHundredEpochsLeaveNothingBehind) {
  for (int epoch = 0; epoch < 100; ++epoch) {
    on_ranks(
        {2, 1},
        [](NcclWorld&, Groups<CudaQueue> groups, CudaQueue& queue) {
          expect_sum(groups, queue, symmetric(*groups.tp, 100), 1);
        },
        kPatient);
  }
  EXPECT_EQ(annulus::testing::take_nccl_sums().symmetric.at(400), 200);
}

TEST_F(Nccl, AnAbortThatHangsEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(on_ranks({1, 2},
                       [](NcclWorld& world, Groups<CudaQueue>, CudaQueue&) {
                         nccl_script().abort_hangs = true;
                         world.abort("rank 1 is lost");
                       }),
              ::testing::ExitedWithCode(kNcclHungExit), "NCCL cannot be aborted .rank 1 is lost.");
}

TEST(NcclLibrary, OneThatIsTooOldSaysBothVersions) {
  EXPECT_TRUE(check_nccl_version(22200).ok());
  EXPECT_TRUE(check_nccl_version(kNcclSymmetricOldest).ok());
  EXPECT_EQ(
      check_nccl_version(22105).message(),
      "the NCCL found has version 2.21.5, but 2.22.0 or newer is needed; install NCCL 2.22 or "
      "newer (NVIDIA's package libnccl2, or nvidia-nccl-cu13 from PyPI) or name the library in "
      "ANNULUS_NCCL");
  EXPECT_NE(check_nccl_version(2804).message().find("version 2.8.4,"), absl::string_view::npos);
  // A library is loaded once: by a process of its own.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        setenv("ANNULUS_NCCL", OLD_LIBRARIES, 1);
        std::cerr << load_nccl().status();
        std::exit(2);
      },
      ::testing::ExitedWithCode(2), "NCCL found has version 2.19.3, but 2.22.0");
}

TEST(NcclLibrary, AMissingOneIsNamed) {
  setenv("ANNULUS_NCCL", "/nowhere/libnccl.so.2", 1);
  const absl::Status status = load_nccl().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("/nowhere/libnccl.so.2"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("install NCCL"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace annulus::parallel
