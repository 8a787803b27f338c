// SPDX-License-Identifier: Apache-2.0
// A constructed one-layer Llama whose next token proves which keys its attention saw: a recall
// head. Nothing in it is random or trained. Tokens are fillers, needles N_i (a key with a code, and
// a query of their own) and asks Q_i (a query only); the answer to code i is N_i.
//
// Every weight and activation is a small integer or a power of two, so bf16 holds them exactly.
// Codes are the bits of i as +-1 in dimensions of the head that RoPE leaves alone (theta 1e300:
// every pair but the first turns by less than 1e-30 rad in a million tokens). The first pair turns
// by one radian a token and adds cos(distance) to a needle's score, so that a key at a wrong
// position shows as well. With A = 5 nats a bit, M = 7 and c = cos(p_i - p_j):
//   score(Q_i, N_j) = M - 2 A hamming(i, j) + c,   score(Q_i, filler) = M - ln(tokens),
// so one needle weighs about as much as all fillers together, and the answer's probabilities move
// when one key of a million is lost, doubled or hidden. expected() gives them in double from
// nothing but counts and codes. Used by recall and its tests; pure but for writing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace annulus::bench {

struct RecallModel {
  int64_t tokens = 0;   // the length it is built for: the weight of fillers
  int64_t context = 0;  // max_position_embeddings
  int32_t needles = 0;  // codes in use, at most kMaxNeedles
  int32_t head_dim = 16;
  int32_t tp = 1;  // heads, all alike: each gives 1 / tp of the answer

  static constexpr int32_t kBits = 13, kMaxNeedles = 1 << kBits;
  static constexpr int32_t kFillers = 256;  // ids 0 to 255, which are the bytes of its tokenizer
  static constexpr int32_t kNothing = 0;    // the id that answers "no such needle"

  int32_t needle_id(int32_t i) const { return kFillers + i; }
  int32_t ask_id(int32_t i) const { return kFillers + needles + i; }
  int32_t vocab() const;
  // The code that needle i asks for itself: by turns the next one (which must be hidden), the one
  // before, its own.
  int32_t own_query(int32_t i) const;
};

// config.json, tokenizer.json and model.safetensors (BF16).
absl::Status write_recall_model(const RecallModel& model, const std::string& folder);

struct PlacedNeedle {
  int32_t code = 0;
  int64_t position = 0;
};

// The exact next-token distribution after a query.
struct RecallAnswer {
  std::vector<double> output;  // of the head: a bit each, then the fillers' share
  double log_total = 0, shrink = 1;
  int32_t best = RecallModel::kNothing;  // most likely id
  double margin = 0;                     // to the next, nats

  double logprob(const RecallModel& model, int32_t id) const;
};

// needles: those visible (position at or below the query's); fillers: visible tokens that are not.
// bf16_cache: keys and queries are rounded to bf16 after rotation, as the default precision does.
RecallAnswer expected(const RecallModel& model, int32_t code, int64_t position,
                      const std::vector<PlacedNeedle>& needles, int64_t fillers, bool bf16_cache);

}  // namespace annulus::bench
