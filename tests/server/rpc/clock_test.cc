// SPDX-License-Identifier: Apache-2.0
// Clocks of other hosts, and the traces whose times are theirs.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "server/clock_offset.h"
#include "server/trace_file.h"
#include "tests/server/rpc/coordinator_rig.h"

namespace annulus::server {
namespace {

using kernels::Interval;

TEST(ClockOffset, TheQuickestReadingCountsAndIsNeverFurtherOffThanHalfItsRoundTrip) {
  constexpr int64_t kTrue = -5'000'000'000'000;
  ClockOffset offset;
  EXPECT_EQ(offset.best().error, -1);
  int64_t now = 1'000'000;
  // Ways there and back differ: the error is at its bound where one of them takes no time.
  for (const auto& [there, back] : {std::pair{900, 100}, {50, 0}, {0, 400}, {7000, 7000}}) {
    offset.add(now, now + there + kTrue, now + there + back);
    now += 100'000;
  }
  EXPECT_FALSE(offset.settled());
  EXPECT_EQ(offset.best().error, 25);
  EXPECT_LE(std::abs(offset.best().offset - kTrue), 25);
}

TEST(ClockOffset, OldReadingsAreForgotten) {
  ClockOffset offset;
  offset.add(0, 1'000'000, 2);
  for (size_t i = 0; i < ClockOffset::kReadings; ++i) offset.add(100, 2'000'000 + 200, 300);
  EXPECT_TRUE(offset.settled());
  EXPECT_EQ(offset.best().offset, 2'000'000);
  EXPECT_EQ(offset.best().error, 100);
}

TEST(ClockOffset, OneClockIsNotShifted) {
  ClockOffset offset;
  offset.add(1000, 1090, 1100);  // both ways 50: 40 more than the middle
  EXPECT_EQ(offset.best().offset, 0);
  EXPECT_EQ(offset.best().error, 50);
}

TEST(ClockOffset, ReadingsThatCannotBeAreLeftOut) {
  ClockOffset offset;
  offset.add(1000, std::numeric_limits<int64_t>::min(), 1100);
  offset.add(1000, std::numeric_limits<int64_t>::max(), 1100);
  offset.add(1000, 1050, 999);
  EXPECT_EQ(offset.best().error, -1);
}

TEST(ReadIntervals, TakesTheOffsetOffAndRefusesWhatIsNone) {
  Interval good{.begin_ns = 5000, .end_ns = 5100};
  good.set_name("attention");
  const auto read = [](const Interval& interval, size_t bytes = sizeof(Interval)) {
    std::string text(sizeof interval, '\0');
    std::memcpy(text.data(), &interval, sizeof interval);
    text.resize(bytes);
    return read_intervals(text, 4000);
  };
  ASSERT_TRUE(read(good).ok());
  EXPECT_EQ(read(good)->front().begin_ns, 1000);
  EXPECT_EQ(read(good)->front().end_ns, 1100);
  EXPECT_TRUE(read_intervals("", 0)->empty());

  EXPECT_FALSE(read(good, sizeof(Interval) - 1).ok());
  Interval bad = good;
  bad.end_ns = 4999;
  EXPECT_FALSE(read(bad).ok());
  bad = good;
  bad.begin_ns = std::numeric_limits<int64_t>::min();
  EXPECT_FALSE(read(bad).ok());
  bad = good;
  bad.name.fill('x');  // without an end
  EXPECT_FALSE(read(bad).ok());
  for (const char c : {'"', '\\', '\n'}) {
    bad = good;
    bad.name[3] = c;
    EXPECT_FALSE(read(bad).ok()) << static_cast<int>(c);
  }
  bad = good;
  bad.lane = static_cast<Interval::Lane>(2);
  EXPECT_FALSE(read(bad).ok());
}

TEST(ReadIntervals, WantsComputingInOrderOfTime) {
  Interval late{.begin_ns = 5000, .end_ns = 5100}, early{.begin_ns = 4000, .end_ns = 4100};
  const auto read = [&](const Interval& first, const Interval& second) {
    const Interval both[] = {first, second};
    return read_intervals({reinterpret_cast<const char*>(both), sizeof both}, 0).ok();
  };
  EXPECT_TRUE(read(early, late));
  EXPECT_FALSE(read(late, early));
  early.lane = Interval::Lane::kTransfer;
  EXPECT_TRUE(read(late, early));
}

TEST_F(CoordinatorTest, NobodyIsAskedForItsClockUnasked) {
  run_epoch_one();
  heartbeats();
  EXPECT_TRUE(coordinator_.take().messages.empty());
}

// Traced: worker 2's clock is 7 s ahead, and each of its readings takes 2 ms.
class TracingCoordinatorTest : public CoordinatorTest {
 protected:
  TracingCoordinatorTest() {
    EpochPlan traced = plan();
    traced.trace = true;
    coordinator_ = EpochCoordinator(traced);
    coordinator_.start(now_);
  }
  // Readings until nobody is asked for one.
  int read_clocks() {
    for (int readings = 0;;) {
      const auto messages = coordinator_.take().messages;
      const int before = readings;
      for (const auto& [to, message] : messages) {
        if (!message.has_clock_probe()) continue;
        ++readings;
        const auto there = now_ + milliseconds(1);
        v1::WorkerMessage reading;
        reading.mutable_clock_reading()->set_worker_ns(
            kernels::nanoseconds(there + (to == 2 ? seconds(7) : seconds(0))));
        coordinator_.received(to, reading, now_ + milliseconds(2));
      }
      if (readings == before) return readings;
      now_ += milliseconds(2);
    }
  }
  void traced_answer(int64_t id, int32_t rank, const std::string& intervals) {
    v1::WorkerMessage message;
    message.mutable_answer()->set_epoch(1);
    parallel::StepResult result;
    result.epoch = result.step = 1;
    result.world_rank = rank;
    message.mutable_answer()->set_result(parallel::encode(result));
    message.mutable_answer()->set_intervals(intervals);
    coordinator_.received(id, message, now_);
  }
  static std::string interval(int64_t begin_ns) {
    kernels::Interval out{.begin_ns = begin_ns, .end_ns = begin_ns + 10};
    return {reinterpret_cast<const char*>(&out), sizeof out};
  }
};

TEST_F(TracingCoordinatorTest, ClocksAreComparedAndStepsComeOnOne) {
  attach(1);
  attach(2);
  EXPECT_EQ(read_clocks(), 2 * static_cast<int>(ClockOffset::kReadings));
  for (const int64_t id : {1, 2}) address(id, 1);
  for (const int64_t id : {1, 2}) ready(id, 1);
  coordinator_.take();
  heartbeat(1);
  EXPECT_EQ(read_clocks(), 1);  // they drift

  parallel::StepPlan plan;
  plan.epoch = 1;
  plan.step = 1;
  plan.groups = {{parallel::Variant::kPassQ, {}}};
  parallel::ShardState state;
  state.cp = 2;
  coordinator_.send_plan(plan, state, 0, now_);
  traced_answer(1, 0, interval(1000));
  EXPECT_TRUE(coordinator_.take().traced.empty());
  traced_answer(2, 1, interval(2000 + 7'000'000'000));
  const auto traced = coordinator_.take().traced;
  ASSERT_EQ(traced.size(), 1u);
  EXPECT_NE(traced[0].name.find("pass-q"), std::string::npos);
  EXPECT_EQ(traced[0].ranks[0][0].begin_ns, 1000);
  EXPECT_EQ(traced[0].ranks[1][0].begin_ns, 2000);
  EXPECT_EQ(traced[0].clocks[0], (TraceClock{.offset_ns = 0, .error_ns = 1'000'000}));
  EXPECT_EQ(traced[0].clocks[1], (TraceClock{.offset_ns = 7'000'000'000, .error_ns = 1'000'000}));
}

TEST_F(TracingCoordinatorTest, ATraceThatIsNoneIsALoss) {
  run_epoch_one();
  send_step(1);
  traced_answer(2, 1, "xyz");
  EXPECT_NE(coordinator_.status().last_end.find("trace of a step"), std::string::npos)
      << coordinator_.status().last_end;
}

}  // namespace
}  // namespace annulus::server
