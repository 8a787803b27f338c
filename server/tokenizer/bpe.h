// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding of one piece: start with one token a byte, then join the pair of neighbours
// whose merge has the lowest rank, leftmost first, until no pair has one. O(n log n) in the piece
// (linked list and heap), so that a hostile piece of megabytes costs seconds at most. A byte
// without a token vanishes before merging, unless set_missing_bytes(). Threads: encode() is const;
// each thread brings its Scratch. Source: Sennrich et al. 2016; GPT-2's byte-level variant.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace annulus::server {

class Bpe {
 public:
  struct Rule {
    int32_t rank;  // lower joins first
    int32_t result;
  };

  struct Scratch {  // kept between pieces so that they need no allocation
    struct Symbol {
      int32_t id;  // -1: joined into its left neighbour
      int32_t prev;
      int32_t next;  // -1 at either end
    };
    struct Candidate {
      int32_t rank;
      int32_t at;
      int32_t left;  // ids when it was found; if they have changed since, it is stale
      int32_t right;
      int32_t result;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  Bpe() { byte_ids_.fill(-1); }

  void set_byte(uint8_t byte, int32_t id) { byte_ids_[byte] = id; }
  // The bytes that have no token so far become `id` instead of vanishing.
  void set_missing_bytes(int32_t id) {
    for (int32_t& known : byte_ids_)
      if (known < 0) known = id;
  }
  void add_merge(int32_t left, int32_t right, Rule rule) { rules_[key(left, right)] = rule; }

  // Appends the ids of `piece` (fewer than 2^31 bytes) to `ids`.
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  static uint64_t key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  // Adds the merge of the symbol `at` with its right neighbour, if there is one. Returns whether it
  // did.
  bool push_candidate(int32_t at, Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, Rule> rules_;
};

}  // namespace annulus::server
