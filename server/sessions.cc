// SPDX-License-Identifier: Apache-2.0
#include "server/sessions.h"

#include <algorithm>

namespace annulus::server {

Session* Sessions::find(const std::string& name) {
  const auto it = sessions_.find(name);
  return it == sessions_.end() ? nullptr : &it->second;
}

const Session* Sessions::find(const std::string& name) const {
  const auto it = sessions_.find(name);
  return it == sessions_.end() ? nullptr : &it->second;
}

std::vector<Sessions::Map::iterator> Sessions::idle() {
  std::vector<Map::iterator> found;
  for (auto it = sessions_.begin(); it != sessions_.end(); ++it) {
    if (it->second.idle()) found.push_back(it);
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a->second.last_used < b->second.last_used; });
  return found;
}

}  // namespace annulus::server
