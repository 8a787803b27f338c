// SPDX-License-Identifier: Apache-2.0
// Finds stop strings in text that arrives in pieces, without ever letting a part of one out: text
// that may be the beginning of a stop string is held back until it is known not to be. The match is
// the one that ends first (of several ending there, the longest), so the cut into pieces does not
// matter. One per answer; one thread. Text is bytes; stop strings are not empty.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace annulus::server {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // The text that may go out now. After a match: what preceded it, and nothing ever after.
  std::string push(std::string_view piece);
  // The answer ends: what was held back.
  std::string flush();

  bool matched() const { return matched_; }
  const std::string& match() const { return match_; }

 private:
  size_t possible_start() const;  // of the longest end of held_ that begins a stop string

  std::vector<std::string> stops_;
  std::string held_, match_;
  bool matched_ = false;
};

}  // namespace annulus::server
