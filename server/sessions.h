// SPDX-License-Identifier: Apache-2.0
// Sessions: named token histories whose KV stays in a slot between requests. Owned by the
// scheduler; pure (a counter instead of a clock orders use). `kv` positions of the tokens have KV
// in the slot; the rest (at least the last answer token, or all after an epoch was lost) is
// computed again by the next turn.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace annulus::server {

struct Session {
  std::vector<int32_t> tokens;
  int32_t slot = -1;     // -1: no KV
  int64_t kv = 0;        // positions [0, kv) have KV
  int64_t request = -1;  // that uses it now
  int64_t last_used = 0;
  bool idle() const { return request < 0; }
};

class Sessions {
 public:
  using Map = std::map<std::string, Session>;

  Session* find(const std::string& name);
  const Session* find(const std::string& name) const;
  Session& find_or_create(const std::string& name) { return sessions_[name]; }
  void erase(const std::string& name) { sessions_.erase(name); }
  void touch(Session& session) { session.last_used = ++uses_; }

  // Idle sessions, least recently used first.
  std::vector<Map::iterator> idle();
  Map& all() { return sessions_; }
  const Map& all() const { return sessions_; }

 private:
  Map sessions_;
  int64_t uses_ = 0;
};

}  // namespace annulus::server
