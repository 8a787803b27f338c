// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include "server/tokenizer/byte_alphabet.h"

namespace annulus::server {
namespace {

TEST(Utf8, EveryCodePointComesBack) {
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(c, text);
    const Utf8Step step = utf8_step(text);
    ASSERT_EQ(step.kind, Utf8Kind::kComplete) << c;
    ASSERT_EQ(step.length, text.size()) << c;
    ASSERT_EQ(step.code_point, c);
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Step part = utf8_step(std::string_view(text).substr(0, cut));
      ASSERT_EQ(part.kind, Utf8Kind::kIncomplete) << c;
      ASSERT_EQ(part.length, cut);
    }
  }
}

// Every two-byte string and every four-byte string of the interesting bytes: exactly as many are
// valid as the encodings of code points that fit.
TEST(Utf8, AcceptsNothingElse) {
  size_t valid = 0;
  for (int a = 0; a < 256; ++a)
    for (int b = 0; b < 256; ++b) {
      const std::string text = {static_cast<char>(a), static_cast<char>(b)};
      if (!first_invalid_utf8(text)) ++valid;
    }
  EXPECT_EQ(valid, 128u * 128u + (0x800u - 0x80u));
  valid = 0;
  for (int a = 0xE0; a < 256; ++a)
    for (int b = 0x80; b < 0xC0; ++b)
      if (!first_invalid_utf8(std::string{static_cast<char>(a), static_cast<char>(b), '\x80'}))
        ++valid;
  EXPECT_EQ(valid, (0x10000u - 0x800u - 0x800u) / 64);
  valid = 0;
  for (int a = 0xE0; a < 256; ++a)
    for (int b = 0x80; b < 0xC0; ++b)
      if (!first_invalid_utf8(
              std::string{static_cast<char>(a), static_cast<char>(b), '\x80', '\x80'}))
        ++valid;
  EXPECT_EQ(valid, 0x100000u / 4096);
}

TEST(Utf8, NamesTheFirstBadByteWhereverItIs) {
  for (size_t before = 0; before < 40; ++before) {
    const std::string text = std::string(before, 'a') + "\xFF" + std::string(20, 'b');
    EXPECT_EQ(first_invalid_utf8(text), before);
    const std::string cut = std::string(before, 'a') + "\xE2\x82";
    EXPECT_EQ(first_invalid_utf8(cut), before);
  }
}

TEST(Utf8, TrimsUnicodeSpace) {
  EXPECT_EQ(trim_unicode_space(" \t\n a b\u00A0\u3000\x1F"), "a b");
  EXPECT_EQ(trim_unicode_space("\u200Bx\u200B"), "\u200Bx\u200B");  // not White_Space
  EXPECT_EQ(trim_unicode_space(" \n"), "");
  EXPECT_EQ(trim_unicode_space(""), "");
}

TEST(ByteAlphabet, SpellsEveryByteOnceAndReadsItBack) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const std::string spelling = spelling_of_bytes(all);
  EXPECT_FALSE(first_invalid_utf8(spelling));
  EXPECT_EQ(bytes_of_spelling(spelling), all);
  EXPECT_EQ(spelling_of_bytes(" \n"), "\u0120\u010A");
  EXPECT_EQ(bytes_of_spelling(" "), std::nullopt);       // spelled U+0120, never as itself
  EXPECT_EQ(bytes_of_spelling("\u0144"), std::nullopt);  // first code point after the alphabet
  EXPECT_EQ(bytes_of_spelling("\xC4"), std::nullopt);
}

}  // namespace
}  // namespace annulus::server
