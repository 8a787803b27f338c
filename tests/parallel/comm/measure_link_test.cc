// SPDX-License-Identifier: Apache-2.0
#include "parallel/measure_link.h"

#include <cstdio>
#include <mutex>

#include "tests/parallel/comm/worlds.h"

namespace annulus::parallel {
namespace {

using MeasureLink = OnWorlds;

TEST_P(MeasureLink, GivesAllRanksTheSamePlausibleNumbers) {
  std::mutex mutex;
  std::vector<LinkMeasure> links;
  const auto start = std::chrono::steady_clock::now();
  on_ring([&](Ring& ring, CpuQueue& queue) {
    const LinkMeasure link = measure_link(ring, queue);
    const std::lock_guard lock(mutex);
    links.push_back(link);
  });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  ASSERT_EQ(static_cast<int32_t>(links.size()), size());
  for (const LinkMeasure& link : links) {
    EXPECT_EQ(link.latency_us, links[0].latency_us);
    EXPECT_EQ(link.bytes_per_us, links[0].bytes_per_us);
    EXPECT_EQ(link.overlap, links[0].overlap);
    EXPECT_EQ(link.overhead_us, links[0].overhead_us);
    EXPECT_EQ(link.collective_overhead_us, links[0].collective_overhead_us);
    EXPECT_EQ(link.collective_bytes_per_us, links[0].collective_bytes_per_us);
  }
  if (size() == 1) {
    EXPECT_EQ(links[0].small_hop_us(), 0);
  } else {
    EXPECT_GT(links[0].small_hop_us(), 0.01);
    EXPECT_LT(links[0].small_hop_us(), 1e5);
    EXPECT_GE(links[0].latency_us, 0);
    EXPECT_GE(links[0].overhead_us, 0);
    EXPECT_GT(links[0].collective_overhead_us, 0.01);
    EXPECT_GT(links[0].collective_bytes_per_us, 1);
    EXPECT_LT(links[0].collective_bytes_per_us, 2e6);
    EXPECT_GT(links[0].bytes_per_us, 1);    // 1 MB/s
    EXPECT_LT(links[0].bytes_per_us, 2e6);  // 2 TB/s
    EXPECT_GE(links[0].overlap, 0);
    EXPECT_LE(links[0].overlap, 1);
  }
  std::printf(
      "%.2f us, %.2f of it own, %.0f bytes/us, overlap %.2f; collective %.2f us, %.0f bytes/us; "
      "measured in %.2f s\n",
      links[0].small_hop_us(), links[0].overhead_us, links[0].bytes_per_us, links[0].overlap,
      links[0].collective_overhead_us, links[0].collective_bytes_per_us, took.count());
  EXPECT_LT(took.count(), 10);  // 0.3 s on an idle machine
}

INSTANTIATE_TEST_SUITE_P(Worlds, MeasureLink, every_world(), world_name);

}  // namespace
}  // namespace annulus::parallel
