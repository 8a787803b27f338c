// SPDX-License-Identifier: Apache-2.0
#include "server/one_line.h"

#include <gtest/gtest.h>

#include <random>

#include "server/tokenizer/utf8.h"

namespace annulus::server {
namespace {

TEST(OneLine, KeepsTextAndSpellsOutTheRest) {
  EXPECT_EQ(one_line(""), "");
  EXPECT_EQ(one_line("a \"b\" \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"),
            "a \"b\" \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
  EXPECT_EQ(one_line("a\nb\tc\r\x1b[31m\x7f"), "a\\nb\\tc\\x0d\\x1b[31m\\x7f");
  EXPECT_EQ(one_line(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(one_line("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(one_line("\xc2\x9b"), "\\xc2\\x9b");  // a control sequence of eight bits
}

TEST(OneLine, IsBoundedAndPrintableWhateverComes) {
  EXPECT_EQ(one_line(std::string(kLongestLine, 'x')), std::string(kLongestLine, 'x'));
  EXPECT_EQ(one_line(std::string(kLongestLine + 1, 'x')), std::string(kLongestLine, 'x') + "...");
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::string text(random() % 3000, '\0');
    for (char& c : text) c = static_cast<char>(random());
    const std::string line = one_line(text);
    EXPECT_LE(line.size(), kLongestLine + 7);
    std::string_view rest = line;
    while (!rest.empty()) {
      const Utf8Step step = utf8_step(rest);
      ASSERT_EQ(step.kind, Utf8Kind::kComplete);
      ASSERT_GE(step.code_point, 0x20u);
      rest.remove_prefix(step.length);
    }
  }
}

}  // namespace
}  // namespace annulus::server
