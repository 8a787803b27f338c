// SPDX-License-Identifier: Apache-2.0
// What one rank did in one step, in the order of its queue and already priced: work of its own, and
// calls that meet other CP ranks. Cut where layers begin: section 0 is what comes before the first
// layer, the last section is the last layer with the head. Plain data between the recorder
// (simulate_recorder.h) and virtual time (simulate_replay.h). Microseconds.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace annulus::bench {

// Whose time it is, on a rank's queue.
enum class Share : uint8_t {
  kMatmul,
  kAttend,
  kRows,
  kPack,  // KV into payloads; clearing partials
  kMerge,
  kAllReduce,
  kHop,         // starting transfers
  kCollective,  // all-to-all, all-gather
  kWait,        // for a hop in flight, or for a rank that has not come yet
};
const char* name(Share share);  // as in traces
inline constexpr size_t kShares = static_cast<size_t>(Share::kWait) + 1;
using Shares = std::array<double, kShares>;
inline double& of(Shares& shares, Share share) {
  return shares[static_cast<size_t>(share)];
}
inline double of(const Shares& shares, Share share) {
  return shares[static_cast<size_t>(share)];
}

struct Record {
  enum class Kind : uint8_t { kWork, kExchange, kAwait, kCollective };
  Kind kind = Kind::kWork;
  Share share = Share::kMatmul;  // whose `us` is
  int32_t to = -1, from = -1;    // exchange: CP ranks; -1: nothing goes that way
  double us = 0;                 // of this rank's queue
  double out_us = 0, in_us = 0;  // in flight once both sides have come; collective: own share
  friend bool operator==(const Record&, const Record&) = default;
};

struct Section {
  std::vector<Record> records;
  Shares us{};             // kWait is known to the replay only
  double transfer_us = 0;  // of all hops, each as if nothing ran beside it
  int64_t visits = 0;      // attend calls that had something to do
  int64_t bytes_sent = 0;  // over the CP group, as this engine sends them
  friend bool operator==(const Section&, const Section&) = default;
};

struct RankTrace {
  std::vector<Section> sections;
  int32_t repeats = 1;  // of section 1, where layers that are equal to it were not recorded
};

}  // namespace annulus::bench
