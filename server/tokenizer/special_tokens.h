// SPDX-License-Identifier: Apache-2.0
// Finds tokens that are written out in text ("<|im_end|>"): leftmost first, and of those that start
// there the longest. Callers: Tokenizer::encode. Built once, then const; any thread. O(bytes x log
// tokens) however hostile the text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace annulus::server {

class SpecialTokens {
 public:
  struct Entry {
    std::string text;
    int32_t id;
  };
  struct Match {
    size_t at;
    size_t length;
    int32_t id;
  };

  SpecialTokens() = default;
  explicit SpecialTokens(std::vector<Entry> entries);  // empty texts are left out

  // The first match at or after `from`.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  const Entry* longest_at(std::string_view rest) const;

  std::vector<Entry> entries_;  // sorted by text
  std::array<bool, 256> starts_{};
};

}  // namespace annulus::server
