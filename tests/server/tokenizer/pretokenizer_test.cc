// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/pretokenizer.h"

#include <gtest/gtest.h>

namespace annulus::server {
namespace {

using Pieces = std::vector<std::string_view>;

Pieces split(const std::vector<SplitRule>& rules, std::string_view text) {
  const auto made = PreTokenizer::create(rules);
  EXPECT_TRUE(made.ok()) << made.status();
  Pieces pieces;
  const absl::Status status = made->split(text, pieces);
  EXPECT_TRUE(status.ok()) << status;
  return pieces;
}

TEST(PreTokenizer, Gpt2Pattern) {
  const std::vector<SplitRule> rules = {{kGpt2Pattern}};
  EXPECT_EQ(split(rules, "It's 12  ok!"), (Pieces{"It", "'s", " 12", " ", " ok", "!"}));
  EXPECT_EQ(split(rules, "IT'S"), (Pieces{"IT", "'", "S"}));
  EXPECT_EQ(split(rules, ""), Pieces{});
  EXPECT_EQ(split(rules, " \n "), (Pieces{" \n "}));
}

TEST(PreTokenizer, DigitsComeFirstSoTheSpaceBeforeThemEndsItsPiece) {
  const std::vector<SplitRule> rules = {{kNumberPattern}, {kGpt2Pattern}};
  EXPECT_EQ(split(rules, "a 12"), (Pieces{"a", " ", "1", "2"}));
  EXPECT_EQ(split(rules, "  1"),
            (Pieces{"  ", "1"}));  // not " " and " ": the lookahead sees no digit
  EXPECT_EQ(split(rules, "x½Ⅷ②१y"), (Pieces{"x", "½", "Ⅷ", "②", "१", "y"}));
}

TEST(PreTokenizer, Llama3Pattern) {
  const std::vector<SplitRule> rules = {{kLlama3Pattern}};
  EXPECT_EQ(split(rules, "IT'S 12345!\n\n x"),
            (Pieces{"IT", "'S", " ", "123", "45", "!\n\n", " x"}));
  EXPECT_EQ(split(rules, "a  b"), (Pieces{"a", " ", " b"}));
  EXPECT_EQ(split(rules, " \n \nx"), (Pieces{" \n \n", "x"}));
}

TEST(PreTokenizer, SpaceIsUnicodeWhiteSpaceAndNoMore) {
  const std::vector<SplitRule> rules = {{R"(\s+)"}};
  EXPECT_EQ(split(rules, "a\u00A0\u2003\u3000\u0085\u2028b"),
            (Pieces{"a", "\u00A0\u2003\u3000\u0085\u2028", "b"}));
  EXPECT_EQ(split(rules, "a\u180Eb\u200Bc"), (Pieces{"a\u180Eb\u200Bc"}));
  EXPECT_EQ(split({{R"([^\sx]+)"}}, "ax b"), (Pieces{"a", "x ", "b"}));
  EXPECT_EQ(split({{R"(\S+)"}}, "ab c"), (Pieces{"ab", " ", "c"}));
  EXPECT_EQ(split({{R"([]\s]+)"}}, "a] ]b"), (Pieces{"a", "] ]", "b"}));
}

TEST(PreTokenizer, Behaviors) {
  const auto with = [](SplitBehavior behavior, bool invert = false) {
    return split({{"-", behavior, invert}}, "a--b-");
  };
  EXPECT_EQ(with(SplitBehavior::kIsolated), (Pieces{"a", "-", "-", "b", "-"}));
  EXPECT_EQ(with(SplitBehavior::kRemoved), (Pieces{"a", "b"}));
  EXPECT_EQ(with(SplitBehavior::kMergedWithPrevious), (Pieces{"a-", "-", "b-"}));
  EXPECT_EQ(with(SplitBehavior::kMergedWithNext), (Pieces{"a", "-", "-b", "-"}));
  EXPECT_EQ(with(SplitBehavior::kContiguous), (Pieces{"a", "--", "b", "-"}));
  EXPECT_EQ(with(SplitBehavior::kRemoved, true), (Pieces{"-", "-", "-"}));
}

TEST(PreTokenizer, LiteralPatternMatchesItsTextAlone) {
  for (const std::string& text : std::vector<std::string>{"a", ".", "\\", "[x]", "\\E", "a b#", "é",
                                                          "\n", "▁", std::string("\0a", 2), "-^$"})
    EXPECT_EQ(split({{literal_pattern(text)}}, "<" + text + ">"), (Pieces{"<", text, ">"})) << text;
}

TEST(PreTokenizer, BadPatternsAreErrors) {
  for (const std::string& pattern : std::vector<std::string>{"(", "[a", "\\p{Nothing}", "a{2,1}",
                                                             "\\C", std::string(1 << 17, 'a')}) {
    const auto made = PreTokenizer::create({{pattern}});
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(PreTokenizer, EmptyMatchesCutNothing) {
  EXPECT_EQ(split({{"x*"}}, "aéxxb"), (Pieces{"aé", "xx", "b"}));
  EXPECT_EQ(split({{"(?=b)"}}, "ab"), (Pieces{"ab"}));
}

// One piece of megabytes, of each class of the patterns: nothing runs into a limit.
TEST(PreTokenizer, LongRunsStayWhole) {
  for (const char* pattern : {kGpt2Pattern, kLlama3Pattern})
    for (const char c : {'a', '!', ' ', '\n'}) {
      const std::string text(5'000'000, c);
      EXPECT_EQ(split({{pattern}}, text), Pieces{text}) << pattern << " " << int{c};
    }
}

}  // namespace
}  // namespace annulus::server
