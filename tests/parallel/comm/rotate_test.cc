// SPDX-License-Identifier: Apache-2.0
// rotate() over every backend: who is shown what, what is sent, and buffers that are shared.
#include "parallel/ring.h"

#include "tests/parallel/comm/worlds.h"

namespace annulus::parallel {
namespace {

class Rotate : public OnWorlds {
 protected:
  // Runs `rounds` rotates over the same buffers; rank r's payload has counts(r, round) words.
  void check(int32_t rounds, const std::function<int64_t(int32_t, int32_t)>& counts) const {
    on_ring([&](Ring& ring, CpuQueue& queue) {
      const int32_t n = ring.size(), me = ring.rank();
      int64_t largest = 0, sent = 0;
      for (int32_t round = 0; round < rounds; ++round)
        for (int32_t r = 0; r < n; ++r) largest = std::max(largest, counts(r, round));
      std::vector<int32_t> ping(static_cast<size_t>(largest)), pong(ping.size());
      for (int32_t round = 0; round < rounds; ++round) {
        const std::vector<int32_t> own = words(counts(me, round), me, round);
        std::vector<int64_t> bytes;
        for (int32_t r = 0; r < n; ++r) bytes.push_back(counts(r, round) * 4);
        std::vector<int32_t> origins;
        rotate(ring, queue, bytes_of(own), bytes, PingPong{{room_of(ping), room_of(pong)}},
               {.step = 2, .sequence = round, .what = "kv ring"},
               [&](int32_t origin, ConstBytes payload) {
                 const int64_t count = counts(origin, round);
                 ASSERT_EQ(static_cast<int64_t>(payload.size()), count * 4);
                 const auto* words_of = reinterpret_cast<const int32_t*>(payload.data());
                 for (int64_t i = 0; i < count; ++i)
                   ASSERT_EQ(words_of[i], word(origin, round, i)) << "origin " << origin;
                 origins.push_back(origin);
               });
        ASSERT_EQ(static_cast<int32_t>(origins.size()), n);
        for (int32_t hop = 0; hop < n; ++hop)
          ASSERT_EQ(origins[static_cast<size_t>(hop)], (me + n - hop) % n);
        // N-1 transfers: every payload but the next rank's own leaves this rank once.
        for (int32_t r = 0; r < n; ++r)
          if (r != (me + 1) % n) sent += counts(r, round) * 4;
        ASSERT_EQ(ring.bytes_sent(), n == 1 ? 0 : sent);
      }
    });
  }
};

TEST_P(Rotate, ShowsEveryPayloadOnce) {
  check(1, [](int32_t, int32_t) { return 1000; });
}
TEST_P(Rotate, TakesUnequalSizes) {
  check(3, [](int32_t r, int32_t round) { return (r + 1) * 777 + round; });
}
TEST_P(Rotate, VisitsEmptyPayloadsWithoutSendingThem) {
  check(6, [](int32_t r, int32_t round) { return (r + round) % 2 * 500; });
  check(2, [](int32_t, int32_t) { return 0; });
  check(4, [](int32_t r, int32_t round) { return r == round ? 100 : 0; });
}
TEST_P(Rotate, SharesBuffersBetweenConsecutiveRotates) {
  check(100, [](int32_t r, int32_t round) { return 64 + (r * 31 + round * 17) % 50; });
}
TEST_P(Rotate, CarriesMegabytes) {
  check(3, [](int32_t r, int32_t) { return (1 << 20) + r; });
}

INSTANTIATE_TEST_SUITE_P(Worlds, Rotate, every_world(), world_name);

}  // namespace
}  // namespace annulus::parallel
