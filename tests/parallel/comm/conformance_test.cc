// SPDX-License-Identifier: Apache-2.0
// What every Communicator must do, over {threads, UCX shared memory, UCX TCP} x sizes.
#include <bit>
#include <cmath>
#include <cstdio>
#include <thread>

#include "tests/parallel/comm/worlds.h"

namespace annulus::parallel {
namespace {

using Conformance = OnWorlds;

// Magnitudes over 16 decades: any other order of adding gives other bits somewhere.
float rough(int64_t rank, int64_t i) {
  const uint64_t h =
      (static_cast<uint64_t>(rank) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(i)) *
      0xbf58476d1ce4e5b9u;
  const double mantissa = static_cast<double>(h >> 40) / (1 << 24) - 0.5;
  return static_cast<float>(mantissa * std::pow(10.0, static_cast<double>(h % 17) - 8.0));
}

TEST_P(Conformance, AllReduceGivesTheSumInRankOrderBitForBit) {
  // Around a cache line, around the switch to slices (64 KiB = 16384 floats), and fewer floats than
  // slices times 16, so that the last slices are empty.
  const std::vector<int64_t> counts = {0, 1, 15, 17, 576, 16384, 16385, 16400, 100003, 1 << 20};
  on_ring([&](Ring& ring, CpuQueue& queue) {
    OpId op{.step = 3, .layer = 1, .what = "sum"};
    for (const int64_t count : counts) {
      std::vector<float> data(static_cast<size_t>(count)), want(data.size());
      for (int64_t i = 0; i < count; ++i) {
        data[static_cast<size_t>(i)] = rough(ring.rank(), i);
        float sum = rough(0, i);
        for (int32_t r = 1; r < ring.size(); ++r) sum += rough(r, i);
        want[static_cast<size_t>(i)] = sum;
      }
      ++op.sequence;
      ring.all_reduce(queue, data, op);
      for (size_t i = 0; i < data.size(); ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(data[i]), std::bit_cast<uint32_t>(want[i]))
            << "float " << i << " of " << count;
      }
    }
  });
}

TEST_P(Conformance, AllReduceOfIntegersIsExact) {
  on_ring([&](Ring& ring, CpuQueue& queue) {
    std::vector<float> data(576);
    for (int32_t round = 0; round < 50; ++round) {
      for (size_t i = 0; i < data.size(); ++i)
        data[i] = static_cast<float>((ring.rank() + 1) * 1000 + round + static_cast<int>(i));
      ring.all_reduce(queue, data, {.step = 1, .sequence = round, .what = "sum"});
      const int n = ring.size();
      for (size_t i = 0; i < data.size(); ++i) {
        ASSERT_EQ(data[i],
                  static_cast<float>(n * (n + 1) / 2 * 1000 + n * (round + static_cast<int>(i))));
      }
    }
  });
}

TEST_P(Conformance, AllGatherKeepsRankOrderWithUnequalAndEmptyParts) {
  on_ring([&](Ring& ring, CpuQueue& queue) {
    for (const int64_t unit : {int64_t{0}, int64_t{1}, int64_t{700}, int64_t{100000}}) {
      std::vector<int64_t> bytes;
      std::vector<int32_t> want;
      for (int32_t r = 0; r < ring.size(); ++r) {
        const int64_t count = r % 3 * unit;  // rank 0 and 3: nothing
        bytes.push_back(count * 4);
        const std::vector<int32_t> part = words(count, r, unit);
        want.insert(want.end(), part.begin(), part.end());
      }
      const std::vector<int32_t> own = words(ring.rank() % 3 * unit, ring.rank(), unit);
      std::vector<int32_t> out(want.size(), -1);
      ring.all_gather(queue, bytes_of(own), room_of(out), bytes, {.step = unit, .what = "gather"});
      ASSERT_EQ(out, want) << unit;
    }
  });
}

TEST_P(Conformance, AllGatherMayTakeItsOwnPartInPlace) {
  on_ring([&](Ring& ring, CpuQueue& queue) {
    const size_t n = static_cast<size_t>(ring.size()), me = static_cast<size_t>(ring.rank());
    std::vector<int32_t> out(n * 10, -1), want;
    for (int32_t r = 0; r < ring.size(); ++r)
      for (int32_t i = 0; i < 10; ++i) want.push_back(word(r, 0, i));
    const std::vector<int32_t> own = words(10, ring.rank(), 0);
    std::copy(own.begin(), own.end(), out.begin() + static_cast<ptrdiff_t>(me * 10));
    const std::vector<int64_t> bytes(n, 40);
    ring.all_gather(queue, bytes_of(out).subspan(me * 40, 40), room_of(out), bytes,
                    {.what = "gather"});
    ASSERT_EQ(out, want);
  });
}

TEST_P(Conformance, AllToAllDeliversUnequalAndEmptyParts) {
  const auto count = [](int32_t from, int32_t to, int64_t unit) {
    return (from * 5 + to * 3) % 4 * unit;
  };
  on_ring([&](Ring& ring, CpuQueue& queue) {
    for (const int64_t unit : {int64_t{1}, int64_t{333}, int64_t{70000}}) {
      std::vector<std::vector<int32_t>> out, in, want;
      for (int32_t r = 0; r < ring.size(); ++r) {
        out.push_back(words(count(ring.rank(), r, unit), ring.rank() * 16 + r, unit));
        want.push_back(words(count(r, ring.rank(), unit), r * 16 + ring.rank(), unit));
        in.emplace_back(want.back().size(), -1);
      }
      std::vector<ConstBytes> send;
      std::vector<Bytes> recv;
      for (auto& part : out) send.push_back(bytes_of(part));
      for (auto& part : in) recv.push_back(room_of(part));
      ring.all_to_all(queue, send, recv, {.step = unit, .what = "partials"});
      ASSERT_EQ(in, want) << unit;
    }
  });
}

TEST_P(Conformance, ExchangeMovesPayloadsOfEverySizeAroundTheRing) {
  // Words: below and above UCX's inline, eager and rendezvous limits, and 1 to 16 MiB.
  const std::vector<int64_t> counts = {1, 2, 23, 25, 2063, 2065, 16384, 16385, 1 << 18, 1 << 22};
  on_ring([&](Ring& ring, CpuQueue& queue) {
    const int32_t n = ring.size(), me = ring.rank();
    OpId op{.what = "kv ring"};
    for (const int64_t count : counts) {
      for (int32_t shift = 1; shift <= std::min(n, 2); ++shift) {
        const int32_t to = (me + shift) % n, from = (me + n - shift) % n;
        const std::vector<int32_t> out = words(count, me, shift);
        std::vector<int32_t> in(out.size(), -1);
        ++op.sequence;
        ring.await(queue, ring.exchange(queue, bytes_of(out), to, room_of(in), from, op));
        ASSERT_EQ(in, words(count, from, shift)) << count << " words, shift " << shift;
      }
    }
  });
}

TEST_P(Conformance, ExchangeWithUnequalSidesSkipsTheEmptyOnes) {
  on_ring([&](Ring& ring, CpuQueue& queue) {
    const int32_t n = ring.size(), me = ring.rank();
    const int32_t to = (me + 1) % n, from = (me + n - 1) % n;
    for (int32_t round = 0; round < 2 * n + 2; ++round) {
      const auto count = [&](int32_t r) { return n == 1 ? round : (r + round) % 3 * 1000; };
      const std::vector<int32_t> out = words(count(me), me, round);
      std::vector<int32_t> in(static_cast<size_t>(count(from)), -1);
      ring.await(queue, ring.exchange(queue, bytes_of(out), to, room_of(in), from,
                                      {.step = 1, .sequence = round, .what = "kv ring"}));
      ASSERT_EQ(in, words(count(from), from, round));
    }
  });
}

TEST_P(Conformance, ManyExchangesAreInFlightAndAwaitedInAnyOrder) {
  constexpr int32_t kFlights = 64;
  on_ring([&](Ring& ring, CpuQueue& queue) {
    const int32_t n = ring.size(), me = ring.rank();
    const int32_t to = (me + 1) % n, from = (me + n - 1) % n;
    std::vector<std::vector<int32_t>> out, in;
    for (int32_t f = 0; f < kFlights; ++f) {
      const int64_t count = f % 8 == 0 ? 100000 : f + 1;
      out.push_back(words(count, me, f));
      in.emplace_back(out.back().size(), -1);
    }
    for (int32_t round = 0; round < 2; ++round) {
      std::vector<Transfer> transfers;
      for (int32_t f = 0; f < kFlights; ++f) {
        const size_t i = static_cast<size_t>(f);
        transfers.push_back(ring.exchange(queue, bytes_of(out[i]), to, room_of(in[i]), from,
                                          {.step = round, .sequence = f, .what = "many"}));
      }
      ring.progress();
      for (int32_t f = kFlights - 1; f >= 0; --f)
        ring.await(queue, std::move(transfers[static_cast<size_t>(f * 5 % kFlights)]));
      for (int32_t f = 0; f < kFlights; ++f) {
        const size_t i = static_cast<size_t>(f);
        ASSERT_EQ(in[i], words(static_cast<int64_t>(in[i].size()), from, f));
        std::fill(in[i].begin(), in[i].end(), -1);
      }
    }
  });
}

TEST_P(Conformance, BytesSentCountsPayloadsToOthers) {
  on_ring([&](Ring& ring, CpuQueue& queue) {
    const int32_t n = ring.size(), me = ring.rank();
    std::vector<std::byte> out(1000), in(1000 * static_cast<size_t>(n));
    const int64_t others = n - 1;
    ASSERT_EQ(ring.bytes_sent(), 0);
    ring.await(queue, ring.exchange(queue, out, (me + 1) % n, Bytes(in).first(1000),
                                    (me + n - 1) % n, {.what = "x"}));
    const int64_t after_exchange = n == 1 ? 0 : 1000;
    ASSERT_EQ(ring.bytes_sent(), after_exchange);
    const std::vector<int64_t> bytes(static_cast<size_t>(n), 1000);
    ring.all_gather(queue, out, in, bytes, {.sequence = 1, .what = "x"});
    ASSERT_EQ(ring.bytes_sent(), after_exchange + others * 1000);
    std::vector<float> small(100), large(16 * static_cast<size_t>(n) * 2000);
    ring.all_reduce(queue, small, {.sequence = 2, .what = "x"});
    ASSERT_EQ(ring.bytes_sent(), after_exchange + others * 1400);
    const int64_t before = ring.bytes_sent();
    ring.all_reduce(queue, large, {.sequence = 3, .what = "x"});
    // Two slices to each of the others.
    ASSERT_EQ(ring.bytes_sent() - before, others * 2 * 16 * 2000 * 4);
    ASSERT_GE(ring.waited_us(), 0);
  });
}

TEST_P(Conformance, SmallHopsStayQuickWhereRanksShareCores) {
  on_ring([&](Ring& ring, CpuQueue& queue) {
    const int32_t n = ring.size(), me = ring.rank();
    int64_t out = me, in = -1;
    const auto start = std::chrono::steady_clock::now();
    for (int32_t hop = 0; hop < 500; ++hop) {
      ring.await(queue, ring.exchange(queue, std::as_bytes(std::span(&out, 1)), (me + 1) % n,
                                      std::as_writable_bytes(std::span(&in, 1)), (me + n - 1) % n,
                                      {.sequence = hop, .what = "token"}));
      out = in;
    }
    ASSERT_EQ(in, (me + 500 * n - 500) % n);
    // A hop that falls back to the 1 ms sleep each time would need half a second; a busy machine
    // may be several times slower than an idle one.
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT_LT(took.count(), 5);
    if (me == 0) std::printf("%.1f us per hop\n", took.count() / 500 * 1e6);
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, Conformance, every_world(), world_name);

class Departure : public ::testing::TestWithParam<Backend> {};

// A receive over shared memory is answered by a message to its sender. Where the sender's inbox is
// full at that moment (rank 1 has filled it while rank 2 slept), the answer must not stay behind in
// a rank that has nothing more to do.
TEST_P(Departure, AFinishedRankOwesNobodyAnAnswer) {
  on_ranks(GetParam(), {.tp = 1, .cp = 3},
           [&](int32_t rank, Groups<CpuQueue> groups, CpuQueue& queue) {
             constexpr int32_t kSmall = 300;
             Ring& ring = *groups.cp;
             std::vector<float> warm(1 << 18);  // connected before
             ring.all_reduce(queue, warm, {.step = 1, .what = "warm up"});
             limit_waits(groups, std::chrono::seconds(10));
             std::vector<int32_t> big = words(1 << 18, 2, 0), in(big.size());
             std::vector<std::vector<int32_t>> small(kSmall, words(100, 1, 0));
             std::vector<Transfer> transfers;
             if (rank == 2) {
               Transfer hop = ring.exchange(queue, bytes_of(big), 0, {}, 0, {.what = "big"});
               std::this_thread::sleep_for(std::chrono::milliseconds(300));
               ring.await(queue, std::move(hop));
             } else if (rank == 0) {
               std::this_thread::sleep_for(std::chrono::milliseconds(150));
               ring.await(queue, ring.exchange(queue, {}, 2, room_of(in), 2, {.what = "big"}));
               EXPECT_EQ(in, big);
             }
             for (int32_t i = 0; rank != 0 && i < kSmall; ++i) {
               const Bytes bytes = room_of(small[static_cast<size_t>(i)]);
               const OpId op{.sequence = i, .what = "small"};
               transfers.push_back(rank == 1 ? ring.exchange(queue, bytes, 2, {}, 2, op)
                                             : ring.exchange(queue, {}, 1, bytes, 1, op));
             }
             for (Transfer& transfer : transfers) ring.await(queue, std::move(transfer));
           });
}

// What a rank has sent arrives though the receiver was late and the sender moves nothing any more.
TEST_P(Departure, AFinishedRankKeepsNoMessages) {
  on_ranks(GetParam(), {.tp = 1, .cp = 2},
           [&](int32_t rank, Groups<CpuQueue> groups, CpuQueue& queue) {
             Ring& ring = *groups.cp;
             std::vector<float> warm(1 << 18);
             ring.all_reduce(queue, warm, {.step = 1, .what = "warm up"});
             limit_waits(groups, std::chrono::seconds(10));
             std::vector<std::vector<int32_t>> payloads;
             std::vector<Transfer> transfers;
             for (int32_t i = 0; i < 1000; ++i) {
               payloads.push_back(words(i % 2 == 0 ? 2000 : 20000, 0, rank == 0 ? i : -1));
               const Bytes bytes = room_of(payloads.back());
               const OpId op{.sequence = i, .what = "many"};
               if (rank == 1 && i == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
               transfers.push_back(rank == 0 ? ring.exchange(queue, bytes, 1, {}, 1, op)
                                             : ring.exchange(queue, {}, 0, bytes, 0, op));
             }
             for (Transfer& transfer : transfers) ring.await(queue, std::move(transfer));
             for (int32_t i = 0; i < 1000; ++i)
               ASSERT_EQ(payloads[static_cast<size_t>(i)], words(i % 2 == 0 ? 2000 : 20000, 0, i));
           });
}

INSTANTIATE_TEST_SUITE_P(Worlds, Departure,
                         ::testing::Values(Backend::kThreads, Backend::kUcxShared,
                                           Backend::kUcxTcp),
                         backend_name);

class Groups2x2 : public ::testing::TestWithParam<Backend> {};

TEST_P(Groups2x2, TpCpAndWorldDoNotMeet) {
  on_ranks(GetParam(), {.tp = 2, .cp = 2},
           [&](int32_t world_rank, Groups<CpuQueue> groups, CpuQueue& queue) {
             const Topology topology{.tp = 2, .cp = 2};
             ASSERT_EQ(groups.tp->rank(), topology.tp_rank(world_rank));
             ASSERT_EQ(groups.cp->rank(), topology.cp_rank(world_rank));
             ASSERT_EQ(groups.world->rank(), world_rank);
             ASSERT_EQ(groups.tp->size(), 2);
             ASSERT_EQ(groups.cp->size(), 2);
             ASSERT_EQ(groups.world->size(), 4);
             const OpId op{.step = 5, .layer = 2, .what = "x"};  // one name in all three groups
             const int32_t other_cp = 1 - groups.cp->rank();
             int32_t mine = world_rank, peer = -1;
             Transfer hop =
                 groups.cp->exchange(queue, std::as_bytes(std::span(&mine, 1)), other_cp,
                                     std::as_writable_bytes(std::span(&peer, 1)), other_cp, op);
             std::vector<float> tp = {static_cast<float>(world_rank)}, all = tp;
             groups.tp->all_reduce(queue, tp, op);
             groups.world->all_reduce(queue, all, op);
             groups.cp->await(queue, std::move(hop));
             EXPECT_EQ(tp[0], static_cast<float>(world_rank / 2 * 4 + 1));
             EXPECT_EQ(all[0], 6);
             EXPECT_EQ(peer, (world_rank + 2) % 4);
           });
}

INSTANTIATE_TEST_SUITE_P(Worlds, Groups2x2,
                         ::testing::Values(Backend::kThreads, Backend::kUcxShared), backend_name);

}  // namespace
}  // namespace annulus::parallel
