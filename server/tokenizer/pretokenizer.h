// SPDX-License-Identifier: Apache-2.0
// Cuts text into the pieces that BPE merges within. A pre-tokenizer is a list of rules, as a
// tokenizer file writes them; each rule cuts every piece of the one before. Patterns run in PCRE2
// (JIT, UTF, Unicode properties), each piece as a subject of its own: a lookahead sees the end of
// its piece, not what follows it. Threads: split() is const and may run concurrently. Ownership:
// pieces point into the caller's text. Errors: a pattern that does not compile is InvalidArgument;
// one that runs into PCRE2's limits is too. `\s` is Unicode White_Space, as in the engines these
// patterns were written for (PCRE2's own adds U+180E).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace annulus::server {

// What becomes of a match; the names are those of tokenizer.json.
enum class SplitBehavior {
  kIsolated,            // a piece of its own
  kRemoved,             // dropped
  kMergedWithPrevious,  // joins the unmatched text before it
  kMergedWithNext,      // joins the unmatched text after it
  kContiguous,          // neighbouring matches join
};

struct SplitRule {
  std::string pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what the pattern does not match counts as the match
};

inline constexpr char kNumberPattern[] = R"(\p{N})";
inline constexpr char kNumbersPattern[] = R"(\p{N}+)";
inline constexpr char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

// A pattern that matches exactly this text.
std::string literal_pattern(std::string_view text);

class PreTokenizer {
 public:
  static absl::StatusOr<PreTokenizer> create(const std::vector<SplitRule>& rules);

  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Replaces `pieces` by the pieces of `text`, in order, none empty. `text` must be valid UTF-8.
  absl::Status split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  class Regex;
  PreTokenizer();
  std::vector<std::unique_ptr<Regex>> rules_;
};

}  // namespace annulus::server
