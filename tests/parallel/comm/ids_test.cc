// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_ids.h"

#include <gtest/gtest.h>

#include <set>

namespace annulus::parallel {
namespace {

TEST(MessageTag, DiffersInEveryField) {
  const OpId base{.step = 100, .layer = 5, .sequence = 6, .hop = 7};
  const auto with = [&](auto change) {
    OpId op = base;
    change(op);
    return message_tag(3, GroupId::kCp, op, 1);
  };
  const std::set<uint64_t> tags = {
      message_tag(3, GroupId::kCp, base, 1), message_tag(4, GroupId::kCp, base, 1),
      message_tag(3, GroupId::kTp, base, 1), message_tag(3, GroupId::kWorld, base, 1),
      message_tag(3, GroupId::kCp, base, 2), with([](OpId& op) { ++op.step; }),
      with([](OpId& op) { ++op.layer; }),    with([](OpId& op) { ++op.sequence; }),
      with([](OpId& op) { ++op.hop; })};
  EXPECT_EQ(tags.size(), 9u);
}

TEST(MessageTag, LargestValuesFitAndDoNotSpill) {
  const OpId largest{.step = 255, .layer = 1023, .sequence = 4095, .hop = 4095};
  EXPECT_EQ(message_tag(255, static_cast<GroupId>(3), largest, 4095), ~uint64_t{0});
  EXPECT_EQ(message_tag(0, GroupId::kTp, {}, 0), 0u);
  // Steps and epochs go on for ever and wrap.
  EXPECT_EQ(message_tag(256, GroupId::kTp, {.step = 256}, 0), 0u);
}

TEST(MessageTagDeathTest, RefusesWhatDoesNotFit) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(message_tag(0, GroupId::kTp, {.layer = 1024}, 0), "layer 1024");
  EXPECT_DEATH(message_tag(0, GroupId::kTp, {.sequence = 4096}, 0), "sequence 4096");
  EXPECT_DEATH(message_tag(0, GroupId::kTp, {.hop = 4096}, 0), "hop 4096");
  EXPECT_DEATH(message_tag(0, GroupId::kTp, {.hop = -1}, 0), "hop -1");
  EXPECT_DEATH(message_tag(0, GroupId::kTp, {}, 4096), "rank 4096");
}

TEST(GroupMembers, AreTheTopology) {
  const Topology topology{.tp = 2, .cp = 3};
  EXPECT_EQ(group_members(topology, GroupId::kTp, 3), (std::vector<int32_t>{2, 3}));
  EXPECT_EQ(group_members(topology, GroupId::kCp, 3), (std::vector<int32_t>{1, 3, 5}));
  EXPECT_EQ(group_members(topology, GroupId::kWorld, 3), (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  for (int32_t w = 0; w < topology.world(); ++w) {
    for (const GroupId group : {GroupId::kTp, GroupId::kCp, GroupId::kWorld}) {
      const std::vector<int32_t> members = group_members(topology, group, w);
      EXPECT_EQ(members.at(static_cast<size_t>(group_rank(topology, group, w))), w);
    }
  }
}

TEST(AbortFlag, KeepsTheFirstReason) {
  AbortFlag flag;
  EXPECT_FALSE(flag.raised());
  flag.raise("first");
  flag.raise("second");
  EXPECT_TRUE(flag.raised());
  EXPECT_EQ(flag.why(), "first");
}

}  // namespace
}  // namespace annulus::parallel
