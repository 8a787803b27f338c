// SPDX-License-Identifier: Apache-2.0
// Text: stop strings never leak, stop ids have no text, the rest is complete.
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/server/engine/rig.h"

namespace annulus::server {
namespace {

using annulus::testing::ask;
using annulus::testing::Heard;
using annulus::testing::prompt_of;
using annulus::testing::Rig;

TEST(EngineStop, StopStringsEndTheAnswerBeforeThem) {
  Rig rig;
  int found = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    GenerateRequest request = ask(prompt_of(25, seed), 40, absl::StrCat("s", seed));
    request.sampling = {.temperature = 1.0f, .top_k = 0, .top_p = 1, .min_p = 0, .seed = seed};
    const std::shared_ptr<Heard> free = rig.run(request);
    ASSERT_EQ(free->text, *rig.tokenizer->decode(free->ids, false));
    // A piece from the middle, over several tokens: the model's tokens are single bytes.
    const size_t middle = free->text.size() / 2;
    const std::string stop = free->text.substr(middle, 9);
    if (stop.size() < 9) continue;
    ++found;
    request.session = absl::StrCat("t", seed);
    request.stop = {"never in the text", stop};
    const std::shared_ptr<Heard> heard = rig.run(request);
    EXPECT_EQ(heard->finished->reason, FinishReason::kStop);
    EXPECT_EQ(heard->finished->stop_text, stop);
    EXPECT_EQ(heard->text, free->text.substr(0, free->text.find(stop)));
    ASSERT_LE(heard->ids.size(), free->ids.size());
    EXPECT_TRUE(std::equal(heard->ids.begin(), heard->ids.end(), free->ids.begin()));
    EXPECT_EQ(heard->finished->usage.completion_tokens, static_cast<int64_t>(heard->ids.size()));

    // The session goes on exactly, although the ranks had computed past the stop.
    std::vector<int32_t> all = prompt_of(25, seed);
    all.insert(all.end(), heard->ids.begin(), heard->ids.end());
    EXPECT_EQ(*rig.engine->session_tokens(request.session), all);
    GenerateRequest append = ask({70, 71}, 8, request.session);
    append.append = true;
    all.insert(all.end(), {70, 71});
    const std::shared_ptr<Heard> next = rig.run(append);
    EXPECT_EQ(next->acceptance.cached_tokens, static_cast<int64_t>(all.size()) - 3);
    EXPECT_EQ(next->ids, rig.run(ask(all, 8))->ids);
  }
  EXPECT_GE(found, 3);
}

TEST(EngineStop, AStopStringInTheLastTokenStillCounts) {
  Rig rig;
  const std::shared_ptr<Heard> free = rig.run(ask(prompt_of(25), 12));
  // Ends of the text that the last token alone completes.
  GenerateRequest request = ask(prompt_of(25), 12);
  const std::string tail = free->text.substr(free->text.size() > 3 ? free->text.size() - 3 : 0);
  request.stop = {tail};
  const std::shared_ptr<Heard> heard = rig.run(request);
  EXPECT_EQ(heard->finished->reason, FinishReason::kStop);
  EXPECT_EQ(heard->text, free->text.substr(0, free->text.find(tail)));
}

TEST(EngineStop, AnUnfinishedBeginningGoesOutAtTheEnd) {
  Rig rig;
  const std::shared_ptr<Heard> free = rig.run(ask(prompt_of(25), 12));
  GenerateRequest request = ask(prompt_of(25), 12);
  request.stop = {free->text.substr(free->text.size() / 2) + "and more"};
  const std::shared_ptr<Heard> heard = rig.run(request);
  EXPECT_EQ(heard->finished->reason, FinishReason::kLength);
  EXPECT_EQ(heard->text, free->text);
}

TEST(EngineStop, StopIdsAreTokensWithoutText) {
  Rig rig;
  GenerateRequest request = ask(prompt_of(25), 40);
  request.sampling = {.temperature = 1.0f, .top_k = 0, .top_p = 1, .min_p = 0, .seed = 5};
  const std::shared_ptr<Heard> free = rig.run(request);
  request.stop_ids = {free->ids[20]};
  const auto first = std::find(free->ids.begin(), free->ids.end(), free->ids[20]);
  const std::vector<int32_t> before(free->ids.begin(), first);
  const std::shared_ptr<Heard> heard = rig.run(request);
  EXPECT_EQ(heard->finished->reason, FinishReason::kStop);
  EXPECT_EQ(heard->finished->stop_text, "");
  EXPECT_EQ(heard->ids.size(), before.size() + 1);
  EXPECT_EQ(heard->text, *rig.tokenizer->decode(before, false));
}

}  // namespace
}  // namespace annulus::server
