// SPDX-License-Identifier: Apache-2.0
// From logits to tokens and to what log-probabilities are made of: ops as those of kernels/ops.h,
// for CPUs (cpu/sampling.cc) and GPUs (cuda/sampling.cu). Both give the same bits: a candidate's
// weight is an integer (core/weights_of_logits.h), so that sums do not depend on their order. Order
// of the filters: temperature, top-k, top-p (the fewest candidates that hold top_p of what top-k
// left), min-p (of the best one's), then inverse transform over candidates sorted by (logit
// descending, id ascending). NaN counts as -inf; +inf takes all, shared evenly. Called by
// parallel/rank, from the one thread that owns the queue.
#pragma once

#include <cstdint>
#include <span>

namespace annulus::kernels {

// [rows, pieces * width] f32, as ranks that share a vocabulary give it: piece p is [rows, width] of
// ids p * width and on, pieces one after the other.
struct Logits {
  const float* data = nullptr;
  int64_t rows = 0;
  int32_t pieces = 1, width = 0;
  int32_t vocab() const { return pieces * width; }
};

// What to find in a row.
struct LogitWish {
  double inverse_temperature = 1;
  uint64_t random = 0;  // the draw, in units of 2^-64
  float top_p = 1;      // 1: off
  float min_p = 0;      // 0: off
  int32_t top_k = 0;    // 0: off
  int32_t id_at = -1;   // where among `ids` the token goes; -1: none is sampled
  int32_t target = -1;  // report the logit of this id; -1: none
  int32_t top = 0;      // report the best, at most the vocabulary and top_room
  bool greedy = true;   // the best, the smaller id of several
  bool mass = false;    // report the sum of weights
};

struct Candidate {
  float logit = 0;
  int32_t id = 0;
};

struct LogitAnswer {
  uint64_t mass = 0;  // of all candidates at temperature 1, in units of the best one's / 2^shift
  float best = 0;     // the largest logit
  int32_t token = -1;
  float token_logit = 0, target_logit = 0;
};

// Where to: `answers` [rows], `top` [rows, top_room] with the best of a row in any order (it may be
// null where top_room is 0), `ids`.
struct SampleOut {
  LogitAnswer* answers = nullptr;
  Candidate* top = nullptr;
  int64_t top_room = 0;
  int32_t* ids = nullptr;
};

// One wish a row, readable by the device as the logits are.
template <class Queue>
void sample(Queue& queue, const Logits& logits, std::span<const LogitWish> wishes,
            const SampleOut& out);

// out[i] = ids[i], or known[~ids[i]] where that is negative: ids that an earlier step has left on
// the device.
template <class Queue>
void resolve_ids(Queue& queue, std::span<int32_t> out, std::span<const int32_t> ids,
                 const int32_t* known);

}  // namespace annulus::kernels
