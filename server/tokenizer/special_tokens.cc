// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/special_tokens.h"

#include <algorithm>
#include <utility>

namespace annulus::server {

SpecialTokens::SpecialTokens(std::vector<Entry> entries) : entries_(std::move(entries)) {
  std::erase_if(entries_, [](const Entry& e) { return e.text.empty(); });
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.text < b.text; });
  for (const Entry& e : entries_) starts_[static_cast<uint8_t>(e.text[0])] = true;
}

const SpecialTokens::Entry* SpecialTokens::longest_at(std::string_view rest) const {
  const Entry* best = nullptr;
  auto low = entries_.begin();
  auto high = entries_.end();
  // Invariant: entries in [low, high) share their first `depth` bytes with rest; the shortest of
  // them is first.
  for (size_t depth = 0; low != high; ++depth) {
    if (low->text.size() == depth) best = &*low++;
    if (depth == rest.size()) break;
    const auto byte_at = [depth](const Entry& e) { return static_cast<uint8_t>(e.text[depth]); };
    const auto wanted = static_cast<uint8_t>(rest[depth]);
    low = std::partition_point(low, high, [&](const Entry& e) { return byte_at(e) < wanted; });
    high = std::partition_point(low, high, [&](const Entry& e) { return byte_at(e) == wanted; });
  }
  return best;
}

std::optional<SpecialTokens::Match> SpecialTokens::find(std::string_view text, size_t from) const {
  if (entries_.empty()) return std::nullopt;
  for (size_t at = from; at < text.size(); ++at) {
    if (!starts_[static_cast<uint8_t>(text[at])]) continue;
    if (const Entry* e = longest_at(text.substr(at))) return Match{at, e->text.size(), e->id};
  }
  return std::nullopt;
}

}  // namespace annulus::server
