// SPDX-License-Identifier: Apache-2.0
// The timeline of a queue, and the file that timelines become.
#include "server/trace_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "kernels/core/phase.h"
#include "kernels/cpu/queue.h"
#include "tests/bench/trace_reader.h"
#include "tests/support/tiny_model.h"

namespace annulus::bench {
namespace {

using kernels::Interval;
using kernels::Phase;

TEST(Timeline, PhasesFollowEachOtherWithTheirPlace) {
  kernels::CpuQueue queue(1);
  kernels::Timeline timeline(100);
  const auto work = [] { std::this_thread::sleep_for(std::chrono::microseconds(10)); };
  queue.phases().record(&timeline);
  work();
  queue.phases().restart();
  work();
  queue.phases().at_layer(3);
  {
    const kernels::InPhase phase(queue, Phase::kAttention);
    work();
    const kernels::AtHop hop(queue, 1);
    work();
    const kernels::InPhase inside(queue, Phase::kWait);
    work();
  }
  work();
  const auto times = queue.phases().take();
  queue.phases().record(nullptr);
  const kernels::InPhase unseen(queue, Phase::kHead);

  struct Expected {
    std::string name;
    int32_t layer, hop;
  };
  const Expected expected[] = {{"other", -1, -1},    {"other", 3, -1}, {"attention", 3, -1},
                               {"attention", 3, 1},  {"wait", 3, 1},   {"attention", 3, 1},
                               {"attention", 3, -1}, {"other", 3, -1}};
  // Leaving a scope takes no time to speak of, but some: only what worked must be there.
  const auto all = timeline.intervals();
  ASSERT_GE(all.size(), 5u);
  double sum_ns = 0;
  size_t at = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    while (at < std::size(expected) &&
           (all[i].name.data() != expected[at].name || all[i].layer != expected[at].layer ||
            all[i].hop != expected[at].hop)) {
      ++at;
    }
    ASSERT_LT(at, std::size(expected)) << i << ": " << all[i].name.data();
    ++at;
    EXPECT_EQ(all[i].begin_ns, i == 0 ? all[0].begin_ns : all[i - 1].end_ns);
    sum_ns += static_cast<double>(all[i].end_ns - all[i].begin_ns);
  }
  double sum_us = 0;
  for (const double us : times) sum_us += us;
  EXPECT_NEAR(sum_us, sum_ns / 1e3, 0.1);
}

TEST(Timeline, DropsWhatDoesNotFitAndSaysSo) {
  kernels::Timeline timeline(2);
  for (int i = 0; i < 5; ++i) timeline.add({.begin_ns = i});
  EXPECT_EQ(timeline.intervals().size(), 2u);
  EXPECT_EQ(timeline.dropped(), 3);
  timeline.clear();
  EXPECT_EQ(timeline.intervals().size(), 0u);
  EXPECT_EQ(timeline.dropped(), 0);
}

Interval interval(const char* name, int64_t begin_ns, int64_t end_ns, int32_t layer = -1) {
  Interval one{.begin_ns = begin_ns, .end_ns = end_ns, .layer = layer};
  one.set_name(name);
  return one;
}

Interval hop(int64_t begin_ns, int64_t end_ns, int32_t to, int32_t from) {
  Interval one = interval("kv ring", begin_ns, end_ns, 0);
  one.lane = Interval::Lane::kTransfer;
  one.hop = 1;
  one.to = to;
  one.from = from;
  return one;
}

TEST(TraceFile, KeepsNanosecondsNestsLayersAndJoinsHops) {
  const std::string file = testing::scratch_directory() + "/trace.json";
  constexpr int64_t kBoot = 123'456'789'012'345;  // clocks count from some boot
  {
    const std::vector<std::string> names = {"a", "b"};
    auto trace = server::TraceFile::create(file, names);
    ASSERT_TRUE(trace.ok()) << trace.status();
    for (int64_t step = 0; step < 2; ++step) {
      const int64_t t = kBoot + step * 10'000;
      const std::vector<Interval> ranks[] = {
          {interval("other", t + 5, t + 10), interval("attention", t + 10, t + 1'511, 0),
           interval("add", t + 1'511, t + 1'600, 0), interval("norm", t + 1'600, t + 1'700, 1),
           hop(t + 10, t + 900, 1, 1)},
          {interval("attention", t, t + 800, 0), hop(t + 1, t + 700, 0, 0)}};
      ASSERT_TRUE((*trace)->add_step("step", ranks).ok());
      // What is there opens while more is to come: a viewer does not ask for the end.
      std::ifstream in(file);
      const std::string text(std::istreambuf_iterator<char>(in), {});
      EXPECT_EQ(text.front(), '[');
      EXPECT_EQ(text.back(), '}');
    }
  }
  const testing::TraceContent trace = testing::read_trace(file);
  testing::expect_sound(trace);
  EXPECT_EQ(trace.ranks, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(trace.arrows.size(), 4u);
  EXPECT_EQ(trace.of(0, "layer").size(), 4u);
  EXPECT_EQ(trace.of(0, "step").at(1).begin_ns, 10'005);
  EXPECT_EQ(trace.of(0, "step").at(1).end_ns, 11'700);
  EXPECT_EQ(trace.of(0, "phase", "attention").at(0).end_ns, 1'511);
  const testing::TraceArrow& first = trace.arrows.at(1);
  EXPECT_EQ(first.sender, 0);
  EXPECT_EQ(first.receiver, 1);
  EXPECT_EQ(first.begin_ns, 10);
  EXPECT_EQ(first.end_ns, 699);
}

TEST(TraceFile, RefusesAFolderThatIsNotThere) {
  const auto trace = server::TraceFile::create("/nowhere/trace.json", {});
  EXPECT_EQ(trace.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(trace.status().message().find("/nowhere/trace.json"), std::string::npos);
}

TEST(TraceFile, DoesNotEmptyWhatAnotherWrites) {
  const std::string file = testing::scratch_directory() + "/written.json";
  const std::vector<std::string> names = {"a"};
  auto first = server::TraceFile::create(file, names);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = server::TraceFile::create(file, names);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(second.status().message().find("another program"), std::string::npos);
  const std::vector<Interval> ranks[] = {{interval("attention", 100, 200, 0)}};
  ASSERT_TRUE((*first)->add_step("step", ranks).ok());
  first->reset();
  EXPECT_EQ(testing::read_trace(file).of(0, "phase").size(), 1u);
  EXPECT_TRUE(server::TraceFile::create(file, names).ok());
}

TEST(TraceFile, SaysThatTheDiskIsFull) {
  const std::vector<std::string> names = {"a"};
  const auto trace = server::TraceFile::create("/dev/full", names);
  EXPECT_NE(trace.status().message().find("No space left"), std::string::npos) << trace.status();
}

// A clock that was shifted by another estimate, and a step of which nobody said anything.
TEST(TraceFile, TakesTimesBeforeItsFirst) {
  const std::string file = testing::scratch_directory() + "/before.json";
  {
    const std::vector<std::string> names = {"a"};
    auto trace = server::TraceFile::create(file, names);
    ASSERT_TRUE(trace.ok()) << trace.status();
    ASSERT_TRUE((*trace)->add_step("none", std::vector<std::vector<Interval>>(1)).ok());
    for (const int64_t begin : {5000, 4999, 2500}) {
      const std::vector<Interval> ranks[] = {{interval("attention", begin, begin + 10, 0)}};
      ASSERT_TRUE((*trace)->add_step("step", ranks).ok());
    }
  }
  const auto found = testing::read_trace(file).of(0, "phase");
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].begin_ns, 0);
  EXPECT_EQ(found[1].begin_ns, -1);
  EXPECT_EQ(found[2].begin_ns, -2500);
}

}  // namespace
}  // namespace annulus::bench
