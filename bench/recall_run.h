// SPDX-License-Identifier: Apache-2.0
// One recall prompt through a running engine over gRPC, and what must be true of it: every check
// answered as computed, progress all the way, KV rows even over the ranks, memory that grows with
// the rows held and with nothing else; and cancels that free their rows at once. Used by
// `annulus-bench recall` and tests/dist, from one thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/v1/inference.pb.h"
#include "bench/client.h"
#include "bench/recall_prompt.h"

namespace annulus::bench {

struct RecallOptions {
  v1::Attention attention = v1::ATTENTION_AUTO;
  bool bf16_cache = true;  // false: --precision fp32
  bool in_chunks = true;   // of the prompt's layout (needs --debug-requests); else the server's
  FILE* out = nullptr;     // where figures go while it runs; null: nowhere
  pid_t front_end = -1;    // its memory is printed too
};

// What is reported of one position.
struct RecallLogprobs {
  int64_t position = 0;
  std::vector<v1::TokenLogprob> top;  // descending
};

struct RecallReport {
  int64_t asked = 0, found = 0;  // needles, by asks
  int64_t checked = 0;           // all positions, hidden needles too
  double worst_logprob = 0;      // |answered - computed| over all ids reported
  int64_t worst_position = -1;
  std::vector<int64_t> found_by_rank;  // needles found, by the rank that holds them
  int64_t progress_events = 0, longest_gap_tokens = 0;
  double prefill_s = 0, decode_ms = 0;
  std::map<std::string, int64_t> prefill_steps;
  int64_t least_kv_rows = 0, most_kv_rows = 0;
  std::vector<int64_t> resident_before, resident_after;  // bytes, by rank
  int64_t resident_growth = 0, allowed_growth = 0;  // of the rank that grew most, after warm-up
  std::vector<RecallLogprobs> logprobs;
  std::vector<std::string> faults;  // one line each; empty: all is as it must be

  bool ok() const { return faults.empty(); }
};

// Errors are the call's own; what is wrong with the answer is in faults.
absl::StatusOr<RecallReport> run_recall(const Client& client, const RecallPrompt& prompt,
                                        const RecallOptions& options);

// Largest |difference| of log-probabilities of equal positions and ranks in the list; an error
// where positions or best ids differ.
absl::StatusOr<double> largest_difference(const RecallReport& a, const RecallReport& b);

// Starts the prompt, cancels it once `after` of it (0 to 1) is computed, and waits until the
// engine is empty again. Error: it did not end as cancelled, or held on to rows or to its place.
struct CancelReport {
  int64_t tokens_done = 0;
  double effect_ms = 0;  // until the engine had dropped the request
  int64_t steps = 0;     // that ended from then on: the one that ran, and the one that frees rows
  double empty_ms = 0, longest_step_ms = 0;  // until no rank held rows
};
absl::StatusOr<CancelReport> cancel_recall(const Client& client, const RecallPrompt& prompt,
                                           const RecallOptions& options, double after);

// Of a process of this host; 0 where there is none.
int64_t resident_bytes(pid_t pid);

}  // namespace annulus::bench
