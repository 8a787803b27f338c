// SPDX-License-Identifier: Apache-2.0
#include "server/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace annulus::server {

std::string StopMatcher::push(std::string_view piece) {
  if (matched_) return "";
  held_.append(piece);
  size_t best_begin = std::string::npos, best_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < best_end || (end == best_end && begin < best_begin)) {
      best_begin = begin;
      best_end = end;
    }
  }
  if (best_end != std::string::npos) {
    matched_ = true;
    match_ = held_.substr(best_begin, best_end - best_begin);
    held_.resize(best_begin);
    return std::exchange(held_, "");
  }
  const size_t keep_from = possible_start();
  std::string out = held_.substr(0, keep_from);
  held_.erase(0, keep_from);
  return out;
}

std::string StopMatcher::flush() {
  return matched_ ? "" : std::exchange(held_, "");
}

size_t StopMatcher::possible_start() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) longest = std::max(longest, stop.size());
  const std::string_view held = held_;
  const size_t window = std::min(held.size(), longest > 0 ? longest - 1 : 0);
  for (size_t start = held.size() - window; start < held.size(); ++start) {
    const std::string_view tail = held.substr(start);
    for (const std::string& stop : stops_) {
      if (tail.size() < stop.size() && std::string_view(stop).starts_with(tail)) return start;
    }
  }
  return held.size();
}

}  // namespace annulus::server
