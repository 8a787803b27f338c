// SPDX-License-Identifier: Apache-2.0
#include "server/app/sizing.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace annulus::server {
namespace {

using parallel::Checkpoint;
using parallel::MemoryQuestion;

constexpr int64_t gib(double bytes) {
  return static_cast<int64_t>(bytes * kGib);
}

struct Sizing : ::testing::Test {
  std::string said(int64_t free_bytes, int64_t held_bytes = 0) const {
    const DeviceRoom room = {"GPU 3 (NVIDIA H100 80GB HBM3)", free_bytes, held_bytes};
    return std::string(check_room(model, question, room).message());
  }
  Checkpoint model = Checkpoint::open("synthetic:70B").value();
  MemoryQuestion question = {
      .topology = {1, 1}, .context = 131072, .gpu = true, .chunk_tokens = 8192};
};

// 70.55e9 weights, and 80 layers x 2 x 8 heads of 128 for 131,072 tokens and an eighth and 4,096
// more, of 2 bytes each.
TEST_F(Sizing, TooLittleNamesPartsAndTheSmallestLayoutThatFits) {
  EXPECT_EQ(said(gib(78.6)),
            "GPU 3 (NVIDIA H100 80GB HBM3) has 78.60 GiB free, and a rank of TP 1 x CP 1 needs "
            "183.24: 131.42 of weights, 46.25 of KV (context 131072), 4.07 of activations, 0.00 of "
            "attention buffers, 1.50 for libraries and graphs: --tp 4 --cp 1 would fit");
}

// Until the weights fit, nothing else helps; then the flags that decide.
TEST_F(Sizing, WhatCanBeLoweredIsWhatThereIsOf) {
  question.topology = {8, 1};
  EXPECT_NE(said(gib(21)).find("would fit, or lower --context or --chunk-tokens"),
            std::string::npos)
      << said(gib(21));
  question.topology = {8, 2};
  question.kv_rows = 1 << 20;
  const std::string line = said(gib(21));
  EXPECT_NE(line.find("(--kv-rows 1048576)"), std::string::npos) << line;
  EXPECT_NE(line.find("no layout of up to 1024 such GPUs with TP up to 8 would fit, or lower "
                      "--kv-rows or --chunk-tokens or --workspace-mib"),
            std::string::npos)
      << line;
}

// To the byte, and what is held already is not needed again.
TEST_F(Sizing, WhatFitsIsFine) {
  question.topology = {8, 1};
  const parallel::RankMemory needs = parallel::rank_memory(model, question);
  const int64_t all = needs.total() + gib(kLibrariesGib);
  EXPECT_EQ(said(all), "");
  EXPECT_NE(said(all - 1), "");
  const int64_t held = needs.weight_bytes;
  EXPECT_EQ(said(all - held, held), "");
  const std::string line = said(all - held - 1, held);
  EXPECT_NE(line.find("GiB free beside 18.14 of weights it holds, and"), std::string::npos) << line;
}

// A worker without the model's file counts the same.
TEST_F(Sizing, AnOutlineIsEnough) {
  const Checkpoint outline = Checkpoint::from_outline(model.outline()).value();
  EXPECT_EQ(parallel::rank_memory(outline, question).total(),
            parallel::rank_memory(model, question).total());
}

// What `annulus plan` says fits a GPU is not refused there.
TEST_F(Sizing, APlanHoldsOnTheGpu) {
  const double memory = (79.6 - kContextGib - kLibrariesGib) * kGib;
  const auto layouts = layouts_that_fit(model, question, memory, {});
  ASSERT_EQ(layouts.size(), 3u);
  for (const Layout& layout : layouts) {
    question = layout.question;
    question.context = layout.most_tokens;
    EXPECT_EQ(said(gib(79.6 - kContextGib)), "");
    ++question.context;
    EXPECT_NE(said(gib(79.6 - kContextGib)), "");
  }
  EXPECT_EQ(fewest_ranks(layouts)->question.topology, (parallel::Topology{4, 1}));
  EXPECT_EQ(fewest_ranks({}), nullptr);
}

}  // namespace
}  // namespace annulus::server
