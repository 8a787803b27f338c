// SPDX-License-Identifier: Apache-2.0
#include "server/app/host_facts.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/queue.h"
#include "server/app/cores.h"
#include "server/examination.h"

namespace annulus::server {
namespace {

TEST(HostFacts, KnowsTheCoresItMayRunOn) {
  HostFacts host;
  host.look();
  const auto facts = host.facts();
  EXPECT_EQ(parse_cores(facts.at(fact::kCores)), allowed_cores());
  EXPECT_FALSE(facts.at(fact::kMachine).empty());
  EXPECT_EQ(facts.at(fact::kKernel).rfind("Linux ", 0), 0u) << facts.at(fact::kKernel);
}

// A queue with a thread for each core pins its owner to the first of them.
TEST(HostFacts, CoresAreThoseBeforeAThreadWasPinned) {
  const std::vector<int> cores = allowed_cores();
  std::thread([&] {
    HostFacts host;
    const kernels::CpuQueue queue(static_cast<int>(cores.size()));
    host.look();
    const auto facts = host.facts();
    EXPECT_EQ(parse_cores(facts.at(fact::kCores)), cores);
    const auto heat = facts.find(fact::kHeat);
    EXPECT_TRUE(heat == facts.end() || std::stoll(heat->second) >= 0);
  }).join();
}

// Two threads that compute on one core each wait for about half of their time.
TEST(HostFacts, ThreadsThatShareACoreWaitForIt) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(allowed_cores().front()), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  const HostFacts host;
  const auto burn = [] {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
    while (std::chrono::steady_clock::now() < end) {
    }
  };
  std::thread other([&] {
    burn();
    std::this_thread::sleep_for(std::chrono::seconds(2));  // its counters go with it
  });
  burn();
  const auto facts = host.facts();
  other.join();
  sched_setaffinity(0, sizeof before, &before);
  if (!facts.contains(fact::kWaitShare)) GTEST_SKIP() << "this kernel has no schedstat";
  EXPECT_GT(std::stod(facts.at(fact::kWaitShare)), 0.3);
}

TEST(HostFacts, ReadsKeysAndValues) {
  const char* text = "usage_usec 12\nthrottled_usec 345\nnr_throttled 6\nbroken x\n";
  EXPECT_EQ(value_in(text, "throttled_usec"), 345);
  EXPECT_EQ(value_in(text, "usage"), -1);
  EXPECT_EQ(value_in(text, "broken"), -1);
  EXPECT_EQ(value_in("", "usage_usec"), -1);
}

}  // namespace
}  // namespace annulus::server
