// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/incremental_decoder.h"

#include <gtest/gtest.h>

#include <random>

#include "server/tokenizer/utf8.h"
#include "tests/server/tokenizer/fixture.h"

namespace annulus::server {
namespace {

// U+FFFD for each maximal subpart, over the whole string at once.
std::string replaced(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const Utf8Step step = utf8_step(bytes);
    if (step.kind == Utf8Kind::kComplete)
      out += bytes.substr(0, step.length);
    else
      append_utf8(0xFFFD, out);
    bytes.remove_prefix(step.length);
  }
  return out;
}

// In the small vocabulary id = byte, so any byte string can be streamed.
TEST(IncrementalDecoder, PiecesOfAnyBytesAreValidAndJoinToTheWhole) {
  const auto tokenizer = Tokenizer::create(small_data({}));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::mt19937 random(7);
  const std::string_view likely =
      "aZ\x80\xBF\x9F\xA0\xC2\xC3\xE0\xE2\xED\xEF\xF0\xF4\xF5\xFF\x8F\x90";
  for (int round = 0; round < 5000; ++round) {
    std::string bytes(random() % 12, '\0');
    for (char& b : bytes) b = likely[random() % likely.size()];
    IncrementalDecoder decoder(**tokenizer, false);
    std::string joined;
    for (const char b : bytes) {
      const std::string piece = decoder.push(static_cast<uint8_t>(b));
      ASSERT_FALSE(first_invalid_utf8(piece));
      joined += piece;
    }
    joined += decoder.flush();
    ASSERT_EQ(joined, replaced(bytes));
    ASSERT_EQ(decoder.flush(), "");
  }
}

TEST(IncrementalDecoder, AnIdOutsideTheVocabularyAddsNothing) {
  const auto tokenizer = Tokenizer::create(small_data({}));
  ASSERT_TRUE(tokenizer.ok());
  IncrementalDecoder decoder(**tokenizer, true);
  for (const int32_t id : {-1, 258, 1 << 30}) EXPECT_EQ(decoder.push(id), "");
  EXPECT_EQ(decoder.push('a'), "a");
  for (const int32_t id : {-1, 258}) {
    const std::vector<int32_t> ids = {'a', id};
    EXPECT_EQ((*tokenizer)->decode(ids, true).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace annulus::server
