// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "tests/server/tokenizer/fixture.h"

namespace annulus::server {
namespace {

using Ids = std::vector<int32_t>;

std::unique_ptr<const Tokenizer> make(TokenizerData data) {
  auto made = Tokenizer::create(data);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

TEST(Tokenizer, MergesByRankThenLeftToRight) {
  // ids: ab 256, bc 257, abc 258 (from ab + c), aa 259
  const auto t = make(small_data({{"a", "b"}, {"b", "c"}, {"ab", "c"}, {"a", "a"}}));
  EXPECT_EQ(*t->encode("abc", false), (Ids{258}));
  EXPECT_EQ(*t->encode("bc", false), (Ids{257}));
  EXPECT_EQ(*t->encode("abbc", false), (Ids{256, 257}));
  EXPECT_EQ(*t->encode("aaa", false), (Ids{259, 'a'}));
  EXPECT_EQ(*t->encode("aaab", false), (Ids{259, 256}));
}

// The textbook loop: look at all neighbours, join the best, start again.
Ids naive(const TokenizerData& data, std::string_view piece) {
  std::vector<std::string> parts;
  for (const char c : piece) parts.emplace_back(1, c);
  while (true) {
    size_t best = data.merges.size(), at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i)
      for (size_t rank = 0; rank < best; ++rank)
        if (data.merges[rank] == std::pair(parts[i], parts[i + 1])) {
          best = rank;
          at = i;
        }
    if (best == data.merges.size()) break;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  Ids ids;
  for (const std::string& part : parts)
    for (size_t id = 0; id < data.tokens.size(); ++id)
      if (data.tokens[id] == part) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

TEST(Tokenizer, MergesLikeTheTextbookLoop) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> known = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    for (int i = 0; i < 12; ++i) {
      const std::pair merge(known[random() % known.size()], known[random() % known.size()]);
      const std::string joined = merge.first + merge.second;
      if (std::find(known.begin(), known.end(), joined) != known.end()) continue;
      known.push_back(joined);
      merges.push_back(merge);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const TokenizerData data = small_data(merges);
    const auto t = make(data);
    for (int i = 0; i < 20; ++i) {
      std::string text(1 + random() % 30, ' ');
      for (char& c : text) c = static_cast<char>('a' + random() % 3);
      ASSERT_EQ(*t->encode(text, false), naive(data, text)) << text;
    }
  }
}

TEST(Tokenizer, IgnoreMergesTakesAWholePieceFirst) {
  TokenizerData data = small_data({{"a", "b"}, {"b", "c"}});
  data.tokens.push_back("xyz");  // no merge leads to it
  data.kinds.push_back(TokenKind::kNormal);
  const auto id = static_cast<int32_t>(data.tokens.size()) - 1;
  EXPECT_EQ(*make(data)->encode("xyz", false), (Ids{'x', 'y', 'z'}));
  data.ignore_merges = true;
  EXPECT_EQ(*make(data)->encode("xyz", false), (Ids{id}));
  EXPECT_EQ(*make(data)->encode("xyzx", false), (Ids{'x', 'y', 'z', 'x'}));
}

TEST(Tokenizer, ControlTokensOnlyWhereAskedAndAddedTokensAlways) {
  TokenizerData data = small_data({});
  data.tokens.insert(data.tokens.end(), {"<tool>", "<tool>>", "<|x|>"});
  data.kinds.insert(data.kinds.end(), {TokenKind::kAdded, TokenKind::kAdded, TokenKind::kControl});
  const auto t = make(data);  // <s> 256, </s> 257, <tool> 258, <tool>> 259, <|x|> 260
  EXPECT_EQ(*t->encode("<s>", false), (Ids{'<', 's', '>'}));
  EXPECT_EQ(*t->encode("<s><s></s>", true), (Ids{256, 256, 257}));
  EXPECT_EQ(*t->encode("a<tool>b", false), (Ids{'a', 258, 'b'}));
  EXPECT_EQ(*t->encode("<tool>>", false), (Ids{259}));  // the longest that starts there
  EXPECT_EQ(*t->encode("<<tool><tool", true), (Ids{'<', 258, '<', 't', 'o', 'o', 'l'}));
  EXPECT_EQ(*t->encode("<|x|", true), (Ids{'<', '|', 'x', '|'}));
}

TEST(Tokenizer, BytesWithoutATokenVanishBeforeMergingOrBecomeUnknown) {
  TokenizerData data = small_data({{"a", "b"}});
  data.splits.clear();
  data.tokens['x'] = "unreachable";
  EXPECT_EQ(*make(data)->encode("axb", false), (Ids{256}));
  data.unk_id = 0;
  EXPECT_EQ(*make(data)->encode("axb", false), (Ids{'a', 0, 'b'}));
}

TEST(Tokenizer, BosOnlyInPrompts) {
  TokenizerData data = small_data({});
  data.add_bos = true;
  const auto t = make(data);
  EXPECT_EQ(*t->encode("a", true), (Ids{'a'}));
  EXPECT_EQ(*t->encode_prompt("a", true), (Ids{256, 'a'}));
  EXPECT_EQ(*t->encode_prompt("", true), (Ids{256}));
}

TEST(Tokenizer, EncodesOnManyThreadsAtOnce) {
  std::vector<std::string> texts;
  std::vector<Ids> wanted;
  for (const auto& line : golden_lines("tokenizer.jsonl")) {
    texts.push_back(line["text"]);
    wanted.push_back(*smollm2().encode(texts.back(), true));
  }
  std::vector<std::jthread> threads;
  std::vector<size_t> wrong(4);
  for (size_t n = 0; n < wrong.size(); ++n)
    threads.emplace_back([&, n] {
      for (size_t i = 0; i < texts.size(); ++i)
        wrong[n] += *smollm2().encode(texts[i], true) != wanted[i];
    });
  threads.clear();
  EXPECT_EQ(wrong, std::vector<size_t>(4, 0));
}

// Long prompts, and texts that are hostile to the merge loop, the cache or the search for control
// tokens. The bound is loose on purpose (shared, slow machines): a quadratic step would take hours.
TEST(Tokenizer, MegabytesTakeSeconds) {
  std::mt19937 random(1);
  std::string prose, words, letters, names;
  while (prose.size() < 5'000'000)
    for (const auto& line : golden_lines("specs.jsonl"))
      if (line.contains("text") && line["text"].is_string()) prose += line["text"];
  while (words.size() < 5'000'000) {
    words += ' ';
    for (size_t n = 1 + random() % 9; n > 0; --n) words += static_cast<char>('a' + random() % 26);
  }
  while (letters.size() < 1'000'000) letters += static_cast<char>('a' + random() % 26);
  while (names.size() < 1'000'000) names += "<|im_start|";
  const std::pair<const char*, std::string> cases[] = {{"prose", prose},
                                                       {"random words", words},
                                                       {"one word", letters},
                                                       {"one letter", std::string(1'000'000, 'a')},
                                                       {"cut names", names},
                                                       {"spaces", std::string(1'000'000, ' ')},
                                                       {"<", std::string(1'000'000, '<')}};
  for (const auto& [name, text] : cases) {
    const auto began = std::chrono::steady_clock::now();
    const auto ids = smollm2().encode(text, true);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_LT(took.count(), 20) << name;
    EXPECT_TRUE(*smollm2().decode(*ids, true) == text) << name;
  }
}

TEST(Tokenizer, InconsistentDataIsRefused) {
  const auto refuses = [](TokenizerData data, const std::string& part) {
    const auto made = Tokenizer::create(data);
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(made.status().ToString().find(part), std::string::npos) << made.status();
  };
  TokenizerData data = small_data({{"a", "b"}});
  data.merges.push_back({"a", "q!"});
  refuses(data, "merges[1]");
  data = small_data({});
  data.tokens.push_back("a");
  data.kinds.push_back(TokenKind::kNormal);
  refuses(data, "has two ids");
  data = small_data({});
  data.kinds.pop_back();
  refuses(data, "token types");
  data = small_data({});
  data.bos_id = 1LL << 40;
  refuses(data, "BOS id 1099511627776");
  data = small_data({});
  data.eos_ids = {-1};
  refuses(data, "EOS id -1");
  data = small_data({});
  data.unk_id = 258;
  refuses(data, "unknown-token id 258");
  data = small_data({});
  data.bos_id.reset();
  data.add_bos = true;
  refuses(data, "BOS");
  data = small_data({});
  data.splits = {{"("}};
  refuses(data, "does not compile");
  refuses(TokenizerData(), "empty");
  data = small_data({});
  data.kinds.assign(data.tokens.size(), TokenKind::kControl);
  refuses(data, "byte-level");
}

}  // namespace
}  // namespace annulus::server
