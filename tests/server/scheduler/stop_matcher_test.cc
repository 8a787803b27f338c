// SPDX-License-Identifier: Apache-2.0
#include "server/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace annulus::server {
namespace {

TEST(StopMatcher, HoldsBackWhatMayBecomeAStop) {
  StopMatcher matcher({"END", "\n\nUser:"});
  EXPECT_EQ(matcher.push("hello E"), "hello ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("O\n"), "ENO");
  EXPECT_EQ(matcher.push("x"), "\nx");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.push("\n\nUser: more"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.match(), "\n\nUser:");
  EXPECT_EQ(matcher.push("after"), "");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopMatcher, FlushGivesTheUnfinishedBeginning) {
  StopMatcher matcher({"abcd"});
  EXPECT_EQ(matcher.push("xabc"), "x");
  EXPECT_EQ(matcher.flush(), "abc");
}

TEST(StopMatcher, WithoutStopsEverythingPasses) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.push("abc"), "abc");
  EXPECT_EQ(matcher.flush(), "");
}

// However the text is cut: the same output and the same match as byte by byte, and nothing of the
// stop string goes out.
TEST(StopMatcher, CutsDoNotMatter) {
  std::mt19937_64 random(3);
  const auto draw = [&](uint64_t n) { return random() % n; };
  int matches = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const auto word = [&](uint64_t length) {
      std::string s;
      for (uint64_t i = 0; i < length; ++i) s += static_cast<char>('a' + draw(2));
      return s;
    };
    std::vector<std::string> stops;
    for (uint64_t i = 0, n = 1 + draw(3); i < n; ++i) stops.push_back(word(2 + draw(5)));
    const std::string text = word(draw(30));
    StopMatcher bytes(stops), pieces(stops);
    std::string by_bytes, by_pieces;
    for (char c : text) by_bytes += bytes.push(std::string(1, c));
    by_bytes += bytes.flush();
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + draw(6);
      by_pieces += pieces.push(std::string_view(text).substr(at, n));
      at += n;
    }
    by_pieces += pieces.flush();
    EXPECT_EQ(by_bytes, by_pieces);
    EXPECT_EQ(bytes.match(), pieces.match());
    size_t first_end = std::string::npos;
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at != std::string::npos) first_end = std::min(first_end, at + stop.size());
    }
    EXPECT_EQ(bytes.matched(), first_end != std::string::npos);
    if (bytes.matched()) {
      ++matches;
      EXPECT_EQ(by_bytes + bytes.match(), text.substr(0, first_end));
    } else {
      EXPECT_EQ(by_bytes, text);
    }
  }
  EXPECT_GT(matches, 1000);
}

}  // namespace
}  // namespace annulus::server
