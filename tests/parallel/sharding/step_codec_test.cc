// SPDX-License-Identifier: Apache-2.0
// Random plans, results and states: decode(encode(x)) == x, and no damage to the bytes crashes.
#include <gtest/gtest.h>

#include "allocations.h"
#include "plans.h"

namespace annulus::parallel {
namespace {

using testing::allocated;
using testing::Random;

Span random_span(Random& random) {
  return {random.in(-5, int64_t{1} << 40), random.in32(0, 1 << 20), random.in32(1, 9)};
}

SamplingParams random_sampling(Random& random) {
  return {random.real(), random.in32(0, 99), random.real(), random.real(),
          static_cast<uint64_t>(random.in(INT64_MIN, INT64_MAX))};
}

StepPlan random_plan(Random& random) {
  StepPlan plan;
  plan.epoch = random.in(0, INT64_MAX);
  plan.step = random.in(INT64_MIN, INT64_MAX);
  plan.layout_id = random.in32(-1, 1);
  plan.digest = static_cast<uint64_t>(random.in(INT64_MIN, INT64_MAX));
  plan.ops.resize(static_cast<size_t>(random.in(0, 5)));
  for (Op& op : plan.ops) {
    op = {static_cast<Op::Kind>(random.in(0, 5)),
          random.in32(-1, 9),
          random.in32(0, 9),
          random.in(-1, INT64_MAX),
          random.in32(0, 9),
          random_sampling(random)};
  }
  plan.items.resize(static_cast<size_t>(random.in(0, 6)));
  for (Item& item : plan.items) {
    item.slot = random.in32(INT32_MIN, INT32_MAX);
    item.placement = static_cast<Placement>(random.in(0, 1));
    for (int64_t n = random.in(0, 3); n > 0; --n) item.spans.push_back(random_span(random));
    for (int64_t n = random.in(0, 40); n > 0; --n) {
      item.tokens.push_back(random.in32(INT32_MIN, INT32_MAX));
    }
    item.sampled = {random.in(-1, 9), random.in32(0, 9)};
    for (int64_t n = random.in(0, 4); n > 0; --n) {
      item.wanted.push_back(
          {random.in(0, 1 << 30), random.coin(), random.in32(-1, 9), random.in32(0, kMaxTop)});
    }
  }
  for (int64_t n = random.in(0, 3); n > 0; --n) {
    Group group{static_cast<Variant>(random.in(0, 2)), {}};
    for (int64_t m = random.in(0, 5); m > 0; --m) group.items.push_back(random.in32(0, 9));
    plan.groups.push_back(group);
  }
  return plan;
}

StepResult random_result(Random& random) {
  StepResult result;
  result.epoch = random.in(0, 9);
  result.step = random.in(0, INT64_MAX);
  result.world_rank = random.in32(0, 99);
  for (int64_t n = random.in(0, 5); n > 0; --n) {
    WantedResult wanted{random.in32(0, 9), random.in(0, 999), random.in32(-1, 999),
                        random.real(),     random.real(),     {}};
    for (int64_t m = random.in(0, 6); m > 0; --m) {
      wanted.top.push_back({random.in32(0, 999), random.real()});
    }
    result.wanted.push_back(wanted);
  }
  for (int64_t n = random.in(0, 3); n > 0; --n) {
    result.groups.push_back({static_cast<Variant>(random.in(0, 2)), random.in(0, INT64_MAX),
                             random.in(0, 99), random.real(), random.real(), random.real()});
  }
  result.step_us = random.real();
  result.idle_us = random.real();
  result.plans_waiting = random.in32(0, 3);
  result.kv_rows = random.in(0, INT64_MAX);
  result.kv_bytes = random.in(0, INT64_MAX);
  result.workspace_peak_bytes = random.in(0, INT64_MAX);
  result.resident_bytes = random.in(0, INT64_MAX);
  result.waited_us = random.real();
  result.rows = random.in32(0, 999);
  result.logit_rows = random.in32(0, 99);
  return result;
}

ShardState random_state(Random& random) {
  ShardState state = testing::state_of(random.in32(1, 5));
  for (int32_t slot = 0; slot < 3; ++slot) {
    std::vector<Op> ops = {testing::admit(slot, random.in32(0, state.cp - 1))};
    ops[0].sampling = random_sampling(random);
    int64_t length = 0;
    for (int64_t turn = random.in(0, 4); turn > 0; --turn) {
      const int32_t count = random.in32(1, 40);
      const Item item = testing::item_of(slot, length, count,
                                         random.coin() ? Placement::kPrompt : Placement::kDecode);
      state = advance(std::move(state), testing::plan_of(state, std::move(ops), {item}));
      ops.clear();
      length += count;
    }
  }
  return state;
}

// Truncation at every length, bytes added, and flipped bytes: an error, or a value that encodes to
// the bytes it came from. The factor covers Item, the largest struct per encoded byte, and the
// growth of its vector; the constant covers the error's text.
template <class Decode, class Accept>
void expect_robust(const std::string& bytes, Random& random, Decode decode, Accept accept) {
  const auto guarded = [&](const std::string& damaged) {
    allocated = 0;
    auto decoded = decode(damaged);
    const size_t used = allocated;
    EXPECT_LE(used, 16 * damaged.size() + 4096);
    return decoded;
  };
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto decoded = guarded(bytes.substr(0, length));
    ASSERT_FALSE(decoded.ok()) << "cut to " << length << " of " << bytes.size();
    ASSERT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(guarded(bytes + '\0').ok());
  for (int i = 0; i < 400; ++i) {
    std::string damaged = bytes;
    for (int64_t flips = random.in(1, 3); flips > 0; --flips) {
      damaged[static_cast<size_t>(random.in(0, static_cast<int64_t>(bytes.size()) - 1))] =
          static_cast<char>(random.in(-128, 127));
    }
    if (const auto decoded = guarded(damaged); decoded.ok()) accept(*decoded, damaged);
  }
}

TEST(StepCodec, PlansComeBack) {
  Random random(1);
  for (int i = 0; i < 300; ++i) {
    const StepPlan plan = random_plan(random);
    const auto decoded = decode_plan(encode(plan));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ASSERT_EQ(*decoded, plan);
  }
  EXPECT_EQ(*decode_plan(encode(StepPlan{})), StepPlan{});
}

TEST(StepCodec, ResultsComeBack) {
  Random random(2);
  for (int i = 0; i < 300; ++i) {
    const StepResult result = random_result(random);
    const auto decoded = decode_result(encode(result));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ASSERT_EQ(*decoded, result);
  }
}

TEST(StepCodec, StatesComeBack) {
  Random random(3);
  for (int i = 0; i < 300; ++i) {
    const ShardState state = random_state(random);
    const auto decoded = decode_shard_state(encode(state));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ASSERT_EQ(*decoded, state);
  }
}

TEST(StepCodec, DamagedPlansAreRefusedOrHarmless) {
  Random random(4);
  for (int i = 0; i < 30; ++i) {
    expect_robust(encode(random_plan(random)), random, decode_plan,
                  [](const StepPlan& plan, const std::string& bytes) {
                    EXPECT_EQ(encode(plan), bytes);
                    // Nor does a plan of nonsense upset its judge.
                    EXPECT_FALSE(validate(testing::state_of(3), plan).ok() && !plan.items.empty());
                  });
  }
}

TEST(StepCodec, DamagedResultsAreRefusedOrHarmless) {
  Random random(5);
  for (int i = 0; i < 30; ++i) {
    expect_robust(encode(random_result(random)), random, decode_result,
                  [](const StepResult& result, const std::string& bytes) {
                    EXPECT_EQ(encode(result), bytes);
                  });
  }
}

TEST(StepCodec, DamagedStatesAreRefusedOrUsable) {
  Random random(6);
  for (int i = 0; i < 30; ++i) {
    expect_robust(encode(random_state(random)), random, decode_shard_state,
                  [](const ShardState& state, const std::string& bytes) {
                    EXPECT_EQ(encode(state), bytes);
                    std::vector<Op> ops;
                    std::vector<Item> items;
                    for (const auto& [id, slot] : state.slots) {
                      ops.push_back(testing::op_of(Op::Kind::kTruncate, id, slot.length / 2));
                      items.push_back(testing::item_of(id, slot.length / 2, 7));
                    }
                    ShardState after = state;
                    EXPECT_TRUE(testing::step(after, testing::plan_of(state, ops, items)).ok());
                  });
  }
}

TEST(StepCodec, HugeCountsAllocateNothing) {
  StepPlan plan;
  plan.items.resize(1);
  std::string bytes = encode(plan);
  // Offsets: header 6, epoch 8, step 8, layout 4, digest 8, then the count of ops.
  bytes.replace(34, 4, "\xff\xff\xff\xff");
  allocated = 0;
  const auto decoded = decode_plan(bytes);
  const size_t used = allocated;
  ASSERT_FALSE(decoded.ok());
  EXPECT_LE(used, 4096u);
  EXPECT_EQ(decoded.status().message(), "step plan: ops counts more than the bytes left hold");
}

TEST(StepCodec, ErrorsNameTheField) {
  StepPlan plan;
  plan.groups = {{Variant::kPassKv, {}}};
  const std::string good = encode(plan);
  const auto message = [](const std::string& bytes) {
    return std::string(decode_plan(bytes).status().message());
  };
  EXPECT_EQ(message(""), "step plan: magic ends early");
  EXPECT_EQ(message(good.substr(0, 20)), "step plan: step ends early");
  EXPECT_EQ(message(good + "ab"), "step plan: end is followed by 2 bytes");
  std::string bad = good;
  bad[good.size() - 5] = 3;
  EXPECT_EQ(message(bad), "step plan: group.variant has an unknown value");
  bad = good;
  bad[4] = 9;
  EXPECT_EQ(message(bad), "step plan: version is 9, this program speaks 1");
  EXPECT_EQ(message(encode(StepResult{})), "step plan: magic is not that of this message");
}

}  // namespace
}  // namespace annulus::parallel
