// SPDX-License-Identifier: Apache-2.0
// SmolLM2's tokenizer, read from the GGUF file, against every line of the goldens (origin:
// tests/golden/README.md).
#include <gtest/gtest.h>

#include "server/tokenizer/incremental_decoder.h"
#include "server/tokenizer/utf8.h"
#include "tests/server/tokenizer/fixture.h"

namespace annulus::server {
namespace {

using Ids = std::vector<int32_t>;

TEST(GoldenTokenizer, EncodesEveryTextToTheSameIds) {
  size_t seen = 0;
  for (const auto& line : golden_lines("tokenizer.jsonl")) {
    const auto ids = smollm2().encode(line["text"].get<std::string>(), line["parse_special"]);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, line["ids"].get<Ids>()) << line["text"];
    ++seen;
  }
  EXPECT_EQ(seen, 225u);
}

TEST(GoldenTokenizer, DecodesEveryTextBack) {
  size_t broken = 0;
  for (const auto& line : golden_lines("tokenizer.jsonl")) {
    const auto text = line["text"].get<std::string>();
    const auto decoded = smollm2().decode(line["ids"].get<Ids>(), /*show_special=*/true);
    ASSERT_TRUE(decoded.ok());
    // Bytes without a token are lost when encoding; what is left of a character then decodes to
    // U+FFFD.
    std::string kept;
    for (const char c : text)
      if (std::string_view("\x04\x06\x13\x14\x16\x1d\xF1\xF2").find(c) == std::string_view::npos)
        kept += c;
    if (first_invalid_utf8(kept)) {
      EXPECT_NE(decoded->find("\uFFFD"), std::string::npos) << text;
      ++broken;
    } else {
      EXPECT_EQ(*decoded, kept);
    }
  }
  EXPECT_LT(broken, 5u);
}

TEST(GoldenTokenizer, StreamsEveryPiece) {
  size_t seen = 0;
  for (const auto& line : golden_lines("detokenize_stream.jsonl")) {
    SCOPED_TRACE(line["name"].get<std::string>());
    const auto ids = line["ids"].get<Ids>();
    IncrementalDecoder decoder(smollm2(), line["show_special"]);
    std::vector<std::string> pieces;
    for (const int32_t id : ids) pieces.push_back(decoder.push(id));
    EXPECT_EQ(pieces, line["pieces"].get<std::vector<std::string>>());
    EXPECT_EQ(decoder.flush(), line["flush"].get<std::string>());
    EXPECT_EQ(*smollm2().decode(ids, line["show_special"]), line["text"].get<std::string>());
    ++seen;
  }
  EXPECT_EQ(seen, 41u);
}

TEST(GoldenTokenizer, RendersAndEncodesEveryChat) {
  size_t seen = 0, attacks = 0;
  for (const auto& line : golden_lines("chat.jsonl")) {
    SCOPED_TRACE(line["name"].get<std::string>());
    const std::vector<ChatMessage> messages = messages_of(line);
    const auto ids = smollm2().encode_chat(messages, line["add_generation_prompt"]);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, line["ids"].get<Ids>());
    EXPECT_EQ(*smollm2().render_chat(messages, line["add_generation_prompt"]),
              line["text"].get<std::string>());
    if (line.contains("unsafe_ids")) {
      EXPECT_NE(*ids, line["unsafe_ids"].get<Ids>());
      ++attacks;
    }
    ++seen;
  }
  EXPECT_EQ(seen, 70u);
  EXPECT_EQ(attacks, 16u);
}

TEST(GoldenTokenizer, RefusesEveryInvalidByteString) {
  size_t seen = 0;
  for (const auto& line : golden_lines("utf8.jsonl")) {
    SCOPED_TRACE(line["why"].get<std::string>());
    const auto hex = line["hex"].get<std::string>();
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    const auto ids = smollm2().encode(bytes, false);
    const std::vector<ChatMessage> chat = {{"user", bytes}};
    const auto chat_ids = smollm2().encode_chat(chat, true);
    EXPECT_EQ(ids.ok(), line["valid"].get<bool>());
    EXPECT_EQ(chat_ids.ok(), line["valid"].get<bool>());
    if (!ids.ok()) {
      EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_EQ(chat_ids.status().code(), absl::StatusCode::kInvalidArgument);
    }
    ++seen;
  }
  EXPECT_EQ(seen, 34u);
}

// The prompts of the generation cases that are chats or plain texts, made again from what they came
// from.
TEST(GoldenTokenizer, MakesThePromptsOfTheGenerationCases) {
  size_t seen = 0;
  for (const auto& line : golden_lines("generate.jsonl")) {
    SCOPED_TRACE(line["name"].get<std::string>());
    auto wanted = line["prompt_ids"].get<Ids>();
    absl::StatusOr<Ids> ids;
    if (line.contains("text") && line["text"].is_string())
      ids = smollm2().encode(line["text"].get<std::string>(), false);
    else if (line.contains("messages") && line["messages"][0]["content"].is_string())
      ids = smollm2().encode_chat(messages_of(line), true);
    else
      continue;  // quotes files, or is a later turn
    ASSERT_TRUE(ids.ok());
    ASSERT_GE(ids->size(), wanted.size());
    ids->resize(wanted.size());  // a case may keep only the first tokens
    EXPECT_EQ(*ids, wanted);
    ++seen;
  }
  EXPECT_GE(seen, 8u);
}

TEST(GoldenTokenizer, KnowsWhatTheFileSays) {
  EXPECT_EQ(smollm2().vocab_size(), 49152);
  EXPECT_EQ(smollm2().bos_id(), 1);
  EXPECT_FALSE(smollm2().add_bos());
  EXPECT_EQ(smollm2().eos_ids(), Ids{2});
  EXPECT_TRUE(smollm2().is_control(16));
  EXPECT_FALSE(smollm2().is_control(17));
  EXPECT_EQ(smollm2().control_id("<|im_end|>"), 2);
  EXPECT_EQ(*smollm2().encode_prompt("Hello", false), *smollm2().encode("Hello", false));
}

}  // namespace
}  // namespace annulus::server
