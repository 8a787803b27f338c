// SPDX-License-Identifier: Apache-2.0
// Llama 3's tokenizer.json against the goldens. Its licence does not let it be committed: fetched
// once by tests/golden/fetch-llama3-tokenizer, else these tests are skipped.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "server/tokenizer/load.h"
#include "tests/server/tokenizer/fixture.h"

namespace annulus::server {
namespace {

using Ids = std::vector<int32_t>;

std::string tokenizer_path() {
  if (const char* set = std::getenv("ANNULUS_LLAMA3_TOKENIZER")) return set;
  std::string cache;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME")) cache = xdg;
  if (const char* home = std::getenv("HOME"); cache.empty() && home)
    cache = std::string(home) + "/.cache";
  return cache + "/annulus/models/llama3/tokenizer.json";
}

class GoldenLlama3 : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(tokenizer_path()))
      GTEST_SKIP() << "no " << tokenizer_path()
                   << "; to fetch it: tests/golden/fetch-llama3-tokenizer";
    auto made = tokenizer_from_json(tokenizer_path());
    ASSERT_TRUE(made.ok()) << made.status();
    tokenizer_ = *std::move(made);
  }
  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_F(GoldenLlama3, EncodesEveryTextToTheSameIds) {
  size_t seen = 0;
  for (const auto& line : golden_lines("tokenizer_llama3.jsonl")) {
    const auto text = line["text"].get<std::string>();
    const auto ids = tokenizer_->encode(text, line["parse_special"]);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, line["ids"].get<Ids>()) << line["text"];
    EXPECT_EQ(*tokenizer_->decode(*ids, /*show_special=*/true), text);
    ++seen;
  }
  EXPECT_EQ(seen, 249u);
}

TEST_F(GoldenLlama3, RendersAndEncodesEveryChat) {
  size_t seen = 0;
  for (const auto& line : golden_lines("chat_llama3.jsonl")) {
    SCOPED_TRACE(line["name"].get<std::string>());
    const std::vector<ChatMessage> messages = messages_of(line);
    const auto ids = tokenizer_->encode_chat(messages, line["add_generation_prompt"]);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, line.value("ids_joined", line["ids"]).get<Ids>());
    EXPECT_EQ(*tokenizer_->render_chat(messages, line["add_generation_prompt"]),
              line["text"].get<std::string>());
    ++seen;
  }
  EXPECT_EQ(seen, 11u);
}

TEST_F(GoldenLlama3, KnowsWhatTheFilesSay) {
  EXPECT_EQ(tokenizer_->vocab_size(), 128256);
  EXPECT_EQ(tokenizer_->bos_id(), 128000);
  EXPECT_TRUE(tokenizer_->add_bos());
  EXPECT_EQ(tokenizer_->eos_ids(), (Ids{128001, 128009}));
  EXPECT_EQ(*tokenizer_->encode_prompt("Hello, world!", false), (Ids{128000, 9906, 11, 1917, 0}));
}

}  // namespace
}  // namespace annulus::server
