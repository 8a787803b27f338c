// SPDX-License-Identifier: Apache-2.0
// UCX between real processes: collectives, a peer that is killed or stopped, and what its survivor
// keeps after throwing the epoch away.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <thread>

#include "kernels/core/check.h"
#include "parallel/ring.h"
#include "tests/parallel/comm/worlds.h"
#include "tests/support/processes.h"

namespace annulus::parallel {
namespace {

using annulus::testing::Blackboard;
using annulus::testing::count_entries;
using annulus::testing::fork_child;
using annulus::testing::Holdings;
using annulus::testing::wait_child;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::unique_ptr<UcxWorld> join(Backend backend, Topology topology, int32_t rank, int64_t epoch,
                               Blackboard& board) {
  auto world = UcxWorld::create(topology, rank, epoch, ucx_options(backend));
  if (!world.ok()) throw std::runtime_error(world.status().ToString());
  board.write(rank, (*world)->address());
  const absl::Status status = (*world)->connect(board.read_all());
  if (!status.ok()) throw std::runtime_error(status.ToString());
  return *std::move(world);
}

class Processes : public ::testing::TestWithParam<std::tuple<Backend, int>> {
 protected:
  Backend backend() const { return std::get<0>(GetParam()); }
  int32_t size() const { return std::get<1>(GetParam()); }
};

// 0 where everything was right.
int collectives(Backend backend, int32_t n, int32_t rank, Blackboard& board) {
  const auto world = join(backend, {.tp = 1, .cp = n}, rank, 1, board);
  const Groups<CpuQueue> groups = world->groups();
  limit_waits(groups, std::chrono::seconds(60));
  Ring& ring = *groups.cp;
  CpuQueue queue(1);
  int wrong = 0;
  for (int32_t round = 0; round < 20; ++round) {
    for (const size_t count : {size_t{1}, size_t{576}, size_t{50000}}) {
      std::vector<float> data(count, static_cast<float>(rank + 1));
      ring.all_reduce(
          queue, data,
          {.step = round, .sequence = static_cast<int32_t>(count % 4096), .what = "sum"});
      for (const float x : data) wrong += x != static_cast<float>(n * (n + 1) / 2);
    }
    const int64_t count = round % 4 == 0 ? 1 << 20 : round * 100;
    const std::vector<int32_t> own = words(count, rank, round);
    const std::vector<int64_t> bytes(static_cast<size_t>(n), count * 4);
    std::vector<int32_t> ping(own.size()), pong(own.size());
    rotate(ring, queue, bytes_of(own), bytes, PingPong{{room_of(ping), room_of(pong)}},
           {.step = round, .layer = 1, .what = "kv ring"}, [&](int32_t origin, ConstBytes payload) {
             const std::vector<int32_t> want = words(count, origin, round);
             wrong += static_cast<int64_t>(payload.size()) != count * 4 ||
                      (count > 0 && std::memcmp(payload.data(), want.data(), payload.size()) != 0);
           });
  }
  return wrong == 0 ? 0 : 1;
}

TEST_P(Processes, CollectivesAreRight) {
  Blackboard board(size());
  std::vector<pid_t> children;
  for (int32_t rank = 0; rank < size(); ++rank)
    children.push_back(fork_child([&] { return collectives(backend(), size(), rank, board); }));
  for (const pid_t child : children) EXPECT_EQ(wait_child(child), 0);
}

INSTANTIATE_TEST_SUITE_P(Worlds, Processes,
                         ::testing::Values(std::tuple(Backend::kUcxShared, 2),
                                           std::tuple(Backend::kUcxShared, 3),
                                           std::tuple(Backend::kUcxShared, 4),
                                           std::tuple(Backend::kUcxTcp, 2),
                                           std::tuple(Backend::kUcxTcp, 3)),
                         world_name);

class LostPeer : public ::testing::TestWithParam<Backend> {
 protected:
  // Exchanges small and large payloads until something throws; the text of it.
  static std::string exchange_until_lost(Ring& ring, CpuQueue& queue) {
    std::vector<std::byte> out(1 << 20), in(1 << 20);
    const int32_t other = 1 - ring.rank();
    try {
      for (int64_t step = 0;; ++step) {
        const size_t bytes = step % 2 == 0 ? out.size() : 64;
        ring.await(queue,
                   ring.exchange(queue, Bytes(out).first(bytes), other, Bytes(in).first(bytes),
                                 other, {.step = step, .what = "kv ring"}));
      }
    } catch (const kernels::DeviceError& error) {
      return error.what();
    }
  }
  static pid_t fork_peer(int64_t epoch, Blackboard& board) {
    return fork_child([&board, epoch] {
      const auto world = join(GetParam(), {.tp = 1, .cp = 2}, 1, epoch, board);
      CpuQueue queue(1);
      limit_waits(world->groups(), std::chrono::seconds(60));
      exchange_until_lost(*world->groups().cp, queue);
      return 0;
    });
  }
};

// 20 epochs in a row: the peer is killed in mid-exchange; every other time the control plane says
// so, else the deadline does.
TEST_P(LostPeer, KilledTwentyTimesLeavesNothingBehind) {
  Holdings before;
  const int shared_files = count_entries("/dev/shm");
  std::vector<pid_t> makers = {getpid()};
  int64_t resident = 0;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    Blackboard board(2);
    const pid_t peer = fork_peer(epoch, board);
    makers.push_back(peer);
    const bool told = epoch % 2 == 0;
    {
      const auto world = join(GetParam(), {.tp = 1, .cp = 2}, 0, epoch, board);
      CpuQueue queue(1);
      Ring& ring = *world->groups().cp;
      limit_waits(world->groups(), milliseconds(told ? 20000 : 250));
      std::jthread control([&] {
        std::this_thread::sleep_for(milliseconds(40 + epoch));
        kill(peer, SIGKILL);
        wait_child(peer);
        if (told) ring.abort("world rank 1 lost");
      });
      const auto start = steady_clock::now();
      const std::string text = exchange_until_lost(ring, queue);
      EXPECT_NE(text.find("cp rank 0 of 2"), std::string::npos) << text;
      EXPECT_LT(steady_clock::now() - start, milliseconds(2000)) << text;
    }  // the survivor throws its world away
    if (epoch == 4) {
      before = Holdings{};
      resident = annulus::testing::resident_kib();
    }
  }
  const Holdings after;
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_EQ(after.threads, before.threads);
  EXPECT_EQ(annulus::testing::count_segments_of(makers), 0);
  // /dev/shm is everybody's: what others have there for a moment goes away.
  const auto end = steady_clock::now() + std::chrono::seconds(10);
  while (count_entries("/dev/shm") > shared_files && steady_clock::now() < end)
    std::this_thread::sleep_for(milliseconds(50));
  EXPECT_LE(count_entries("/dev/shm"), shared_files);
  if (annulus::testing::kSanitized) return;        // keeps freed memory
  EXPECT_LE(after.mappings, before.mappings + 4);  // malloc's own
  EXPECT_LT(annulus::testing::resident_kib(), resident + 8192);
}

TEST_P(LostPeer, StoppedMeetsTheDeadline) {
  Blackboard board(2);
  const pid_t peer = fork_peer(1, board);
  auto world = join(GetParam(), {.tp = 1, .cp = 2}, 0, 1, board);
  CpuQueue queue(1);
  limit_waits(world->groups(), milliseconds(300));
  std::jthread control([&] {
    std::this_thread::sleep_for(milliseconds(50));
    kill(peer, SIGSTOP);
  });
  const std::string text = exchange_until_lost(*world->groups().cp, queue);
  EXPECT_NE(text.find("deadline"), std::string::npos) << text;
  const auto start = steady_clock::now();
  world.reset();
  EXPECT_LT(steady_clock::now() - start, milliseconds(1000));
  control.join();
  kill(peer, SIGKILL);
  wait_child(peer);
}

// The peer is stopped before it has read anything: connections are half made, queues are full.
TEST_P(LostPeer, ThatNeverAnsweredIsLetGoOf) {
  for (const size_t bytes : {size_t{8}, size_t{8000}, size_t{1} << 20}) {
    Blackboard board(2);
    const pid_t peer = fork_child([&] {
      const auto world = join(GetParam(), {.tp = 1, .cp = 2}, 1, 1, board);
      return raise(SIGSTOP);
    });
    auto world = join(GetParam(), {.tp = 1, .cp = 2}, 0, 1, board);
    CpuQueue queue(1);
    std::vector<std::byte> out(bytes), in(bytes);
    Ring& ring = *world->groups().cp;
    ring.set_deadline(steady_clock::now() + milliseconds(50));
    std::vector<Transfer> transfers;
    for (int32_t i = 0; i < 300; ++i) {
      transfers.push_back(ring.exchange(queue, out, 1, in, 1, {.sequence = i, .what = "kv ring"}));
    }
    EXPECT_THROW(ring.await(queue, std::move(transfers[0])), kernels::DeviceError);
    const auto start = steady_clock::now();
    world.reset();
    EXPECT_LT(steady_clock::now() - start, milliseconds(1000));
    kill(peer, SIGKILL);
    wait_child(peer);
  }
}

// Their time-outs are one, not a sum: seven of 200 ms would be 1.4 s.
TEST_P(LostPeer, ManyAreLetGoOfTogether) {
  constexpr int kWorld = 8;
  Blackboard board(kWorld);
  std::vector<pid_t> peers;
  for (int32_t rank = 1; rank < kWorld; ++rank) {
    peers.push_back(fork_child([&] {
      const auto world = join(GetParam(), {.tp = 1, .cp = kWorld}, rank, 1, board);
      return raise(SIGSTOP);
    }));
  }
  auto world = join(GetParam(), {.tp = 1, .cp = kWorld}, 0, 1, board);
  CpuQueue queue(1);
  std::vector<float> data(100000);
  Ring& ring = *world->groups().cp;
  ring.set_deadline(steady_clock::now() + milliseconds(50));
  EXPECT_THROW(ring.all_reduce(queue, data, {.what = "sum"}), kernels::DeviceError);
  const auto start = steady_clock::now();
  world.reset();
  EXPECT_LT(steady_clock::now() - start, milliseconds(1000));
  for (const pid_t peer : peers) {
    kill(peer, SIGKILL);
    wait_child(peer);
  }
}

// A rank whose peer computes for long must not burn its core, before first contact (round 0) nor
// after.
TEST_P(LostPeer, WaitingCostsNoProcessorTime) {
  constexpr int kRounds = 2;
  Blackboard board(2);
  const pid_t peer = fork_child([&] {
    const auto world = join(GetParam(), {.tp = 1, .cp = 2}, 1, 1, board);
    CpuQueue queue(1);
    std::vector<float> data(10);
    for (int round = 0; round < kRounds; ++round) {
      std::this_thread::sleep_for(milliseconds(500));
      world->groups().cp->all_reduce(queue, data, {.sequence = round, .what = "sum"});
    }
    return 0;
  });
  const auto world = join(GetParam(), {.tp = 1, .cp = 2}, 0, 1, board);
  CpuQueue queue(1);
  std::vector<float> data(10);
  for (int round = 0; round < kRounds; ++round) {
    const std::clock_t start = std::clock();
    world->groups().cp->all_reduce(queue, data, {.sequence = round, .what = "sum"});
    const double busy_s = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    EXPECT_LT(busy_s, 0.1) << round;  // of half a second; measured about 0.01
    std::printf("busy %.4f s\n", busy_s);
  }
  EXPECT_GT(world->groups().cp->waited_us(), 1e5);
  EXPECT_EQ(wait_child(peer), 0);
}

INSTANTIATE_TEST_SUITE_P(Worlds, LostPeer, ::testing::Values(Backend::kUcxShared, Backend::kUcxTcp),
                         backend_name);

}  // namespace
}  // namespace annulus::parallel
