// SPDX-License-Identifier: Apache-2.0
// Several steps: turns with decode between them, truncation, forks, and the fold over the log.
#include <gtest/gtest.h>

#include <algorithm>

#include "plans.h"

namespace annulus::parallel {
namespace {

using testing::admit;
using testing::item_of;
using testing::op_of;
using testing::plan_of;
using testing::Random;
using testing::state_of;

// Every position of every slot on exactly one rank, ascending there, in the one form.
void expect_whole(const ShardState& state) {
  for (const auto& [id, slot] : state.slots) {
    std::vector<int> seen(static_cast<size_t>(slot.length), 0);
    for (const auto& spans : slot.ranks) {
      const auto rows = positions(spans);
      ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end())) << "slot " << id;
      for (const int32_t p : rows) {
        ASSERT_LT(p, slot.length);
        ++seen[static_cast<size_t>(p)];
      }
    }
    ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), slot.length) << "slot " << id;
  }
  // The decoder refuses spans that are not coalesced.
  ASSERT_TRUE(decode_shard_state(encode(state)).ok());
}

int64_t spread(const SlotShard& slot) {
  int64_t least = INT64_MAX, most = 0;
  for (const auto& spans : slot.ranks) {
    least = std::min(least, count(spans));
    most = std::max(most, count(spans));
  }
  return most - least;
}

// A prompt leaves ranks within one row, a run of decode too, so each turn adds at most two; the
// promise is max(1 %, N + 1 rows a turn).
TEST(Turns, KvStaysSpreadOverRanks) {
  Random random(1);
  for (const int32_t n : {1, 2, 3, 4, 5, 8}) {
    ShardState state = state_of(n);
    ASSERT_TRUE(testing::step(state, plan_of(state, {admit(0, random.in32(0, n - 1))}, {})).ok());
    for (int64_t turn = 1; turn <= 60; ++turn) {
      const int64_t length = state.slots.at(0).length;
      const int32_t prompt = random.in32(1, 300), decoded = random.in32(1, 60);
      ASSERT_TRUE(testing::step(state, plan_of(state, {}, {item_of(0, length, prompt)})).ok());
      for (int32_t i = 0; i < decoded; ++i) {
        const Item item = item_of(0, length + prompt + i, 1, Placement::kDecode);
        ASSERT_TRUE(testing::step(state, plan_of(state, {}, {item})).ok());
      }
      ASSERT_LE(spread(state.slots.at(0)), 2 * turn) << n << " ranks";
      ASSERT_LE(spread(state.slots.at(0)),
                std::max(state.slots.at(0).length / n / 100, (n + 1) * turn));
    }
    expect_whole(state);
  }
}

TEST(Turns, DecodedRunsAreOneSpanARank) {
  for (const int32_t n : {1, 3, 4}) {
    ShardState state = state_of(n);
    state = advance(state, plan_of(state, {admit(0, 1 % n)}, {item_of(0, 0, 64 * n)}));
    for (int32_t i = 0; i < 50 * n; ++i) {
      const Item item = item_of(0, 64 * n + i, 1, Placement::kDecode);
      state = advance(std::move(state), plan_of(state, {}, {item}));
    }
    for (const auto& spans : state.slots.at(0).ranks) {
      EXPECT_LE(spans.size(), 3u);
      if (n > 1) {
        EXPECT_EQ(spans.back().stride, n);
      }
      EXPECT_EQ(count(spans), 64 + 50);
    }
  }
}

// A random log of items; after each, a longer one is tried and truncated away.
TEST(Truncate, UndoesExactly) {
  Random random(2);
  for (int round = 0; round < 200; ++round) {
    ShardState state = state_of(random.in32(1, 8));
    state = advance(state, plan_of(state, {admit(0, random.in32(0, state.cp - 1))}, {}));
    for (int i = 0; i < 12; ++i) {
      const int64_t length = state.slots.at(0).length;
      ShardState longer = state;
      for (int64_t more = random.in(1, 4); more > 0; --more) {
        const Item item = item_of(0, longer.slots.at(0).length, random.in32(1, 20),
                                  random.in(0, 2) > 0 ? Placement::kDecode : Placement::kPrompt);
        longer = advance(std::move(longer), plan_of(longer, {}, {item}));
      }
      const StepPlan undo = plan_of(longer, {op_of(Op::Kind::kTruncate, 0, length)}, {});
      ASSERT_TRUE(testing::step(longer, undo).ok());
      ASSERT_EQ(longer.slots, state.slots);
      ASSERT_NE(longer.digest, state.digest);
      const Item kept = item_of(0, length, random.in32(1, 5),
                                random.coin() ? Placement::kDecode : Placement::kPrompt);
      state = advance(std::move(state), plan_of(state, {}, {kept}));
    }
    expect_whole(state);
  }
}

TEST(Truncate, ToEveryLengthKeepsThePrefix) {
  ShardState state = state_of(3);
  state = advance(state, plan_of(state, {admit(0, 2)}, {item_of(0, 0, 17)}));
  for (int32_t p = 17; p < 30; ++p) {
    state = advance(state, plan_of(state, {}, {item_of(0, p, 1, Placement::kDecode)}));
  }
  for (int64_t length = 0; length <= 30; ++length) {
    ShardState cut = state;
    ASSERT_TRUE(testing::step(cut, plan_of(cut, {op_of(Op::Kind::kTruncate, 0, length)}, {})).ok());
    expect_whole(cut);
    for (size_t r = 0; r < 3; ++r) {
      auto kept = positions(state.slots.at(0).ranks[r]);
      std::erase_if(kept, [&](int32_t p) { return p >= length; });
      EXPECT_EQ(positions(cut.slots.at(0).ranks[r]), kept);
    }
  }
}

TEST(Fork, IsACopyThatTruncates) {
  ShardState state = state_of(4);
  Op first = admit(0, 3);
  first.sampling = {0.5f, 3, 0.9f, 0.1f, 42};
  state = advance(state, plan_of(state, {first}, {item_of(0, 0, 41)}));
  ShardState forked = state;
  ASSERT_TRUE(testing::step(
                  forked, plan_of(forked, {op_of(Op::Kind::kFork, 7, 30, 0)}, {item_of(7, 30, 5)}))
                  .ok());
  expect_whole(forked);
  EXPECT_EQ(forked.slots.at(0), state.slots.at(0));
  EXPECT_EQ(forked.slots.at(7).sampling, first.sampling);
  EXPECT_EQ(forked.slots.at(7).decode_base, 3);
  ShardState truncated = state;
  truncated = advance(truncated, plan_of(state, {op_of(Op::Kind::kTruncate, 0, 30)}, {}));
  truncated = advance(truncated, plan_of(truncated, {}, {item_of(0, 30, 5)}));
  EXPECT_EQ(forked.slots.at(7), truncated.slots.at(0));
}

TEST(Ops, AdmitSampleRebaseRelease) {
  ShardState state = state_of(2);
  Op sampling = op_of(Op::Kind::kSampling, 5);
  sampling.sampling.temperature = 0.7f;
  ASSERT_TRUE(testing::step(state, plan_of(state, {admit(5, 1), sampling, admit(6)}, {})).ok());
  EXPECT_EQ(state.slots.at(5).sampling.temperature, 0.7f);
  EXPECT_EQ(state.slots.at(5).decode_base, 1);
  EXPECT_EQ(state.slots.at(5).ranks.size(), 2u);
  const std::vector<Op> ops = {op_of(Op::Kind::kRelease, 5), admit(5), testing::rebase(6, 1)};
  ASSERT_TRUE(testing::step(state, plan_of(state, ops, {})).ok());
  EXPECT_EQ(state.slots.at(5), (SlotShard{0, 0, {}, {{}, {}}}));
  EXPECT_EQ(state.slots.at(6).decode_base, 1);
}

// Rebasing moves tokens to come, never tokens that are there.
TEST(Ops, RebaseLeavesStoredRows) {
  ShardState state = state_of(3);
  state = advance(state, plan_of(state, {admit(0)}, {item_of(0, 0, 2, Placement::kDecode)}));
  const auto before = state.slots.at(0).ranks;
  state = advance(state, plan_of(state, {testing::rebase(0, 2)}, {}));
  EXPECT_EQ(state.slots.at(0).ranks, before);
  state = advance(state, plan_of(state, {}, {item_of(0, 2, 1, Placement::kDecode)}));
  EXPECT_EQ(positions(state.slots.at(0).ranks[1]), (std::vector<int32_t>{1, 2}));
  expect_whole(state);
}

// A rank that folds decoded plans, a front end that folds its own, and one that gets the state
// halfway agree at every step.
TEST(Advance, FoldIsTheSameEverywhere) {
  Random random(3);
  const int32_t n = 4, rank = 2;
  ShardState front = state_of(n), worker = state_of(n);
  int32_t next_slot = 0;
  for (int64_t i = 0; i < 300; ++i) {
    std::vector<Op> ops;
    std::vector<int32_t> live;
    for (const auto& [id, slot] : front.slots) live.push_back(id);
    if (live.size() < 4 || random.in(0, 5) == 0) {
      live.push_back(next_slot);
      ops.push_back(admit(next_slot++, random.in32(0, n - 1)));
    }
    if (live.size() > 6) {
      ops.push_back(op_of(Op::Kind::kRelease, live[0]));
      live.erase(live.begin());
    }
    if (random.in(0, 3) == 0 && live.size() > 1 && front.slots.contains(live[1])) {
      ops.push_back(op_of(Op::Kind::kTruncate, live[1], front.slots.at(live[1]).length / 2));
    }
    ShardState ready = front;
    apply_ops(ready, plan_of(front, ops, {}));
    std::vector<Item> items;
    for (const auto& [id, slot] : ready.slots) {
      if (random.coin()) continue;
      const bool decode = random.coin();
      items.push_back(item_of(id, slot.length, decode ? 1 : random.in32(1, 30),
                              decode ? Placement::kDecode : Placement::kPrompt));
    }
    const StepPlan plan = plan_of(front, ops, items);
    const auto sent = decode_plan(encode(plan_for_rank(ready, plan, rank)));
    ASSERT_TRUE(testing::step(front, plan).ok());
    ASSERT_TRUE(sent.ok());
    ASSERT_TRUE(validate(worker, *sent, rank).ok()) << validate(worker, *sent, rank);
    worker = advance(std::move(worker), *sent);
    ASSERT_EQ(worker, front);
    if (i == 150) worker = *decode_shard_state(encode(front));
  }
  expect_whole(front);
}

}  // namespace
}  // namespace annulus::parallel
