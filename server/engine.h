// SPDX-License-Identifier: Apache-2.0
// Engine: one thread between the requests and the ranks. Takes requests from a bounded queue, lets
// the scheduler make plans (two in flight), turns answers into token events with text, finds stops,
// and undoes what was computed past them. Public methods may be called from any thread and do not
// block on the ranks; sinks are called from the engine thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/phase.h"
#include "parallel/model/config.h"
#include "server/metrics.h"
#include "server/rank_link.h"
#include "server/request.h"
#include "server/tokenizer/tokenizer.h"

namespace annulus::server {

struct EngineOptions {
  int64_t context = 0;          // served context; 0: the model's
  int32_t max_running = 64;     // sequences in a step
  int32_t max_queue = 256;      // waiting requests; one more is RESOURCE_EXHAUSTED
  int32_t max_sessions = 64;    // idle sessions kept; the least recently used goes first
  int32_t max_step_ms = 500;    // the largest chunk predicted to stay under it is taken
  int32_t chunk_tokens = 0;     // > 0: this chunk instead
  bool debug_requests = false;  // requests may set variant and chunk_tokens
  std::optional<parallel::Variant> variant;  // --attention; empty: auto
};

// Microseconds of a rank since the epoch began; phases_us only where ranks profile. waited_us is
// for peers in all groups, those of attention (sendrecv, all_to_all, all_gather) included.
struct RankSpent {
  double steps_us = 0, attention_us = 0, sendrecv_us = 0, all_to_all_us = 0, all_gather_us = 0;
  double waited_us = 0;
  std::array<double, kernels::kPhases> phases_us{};

  void add(const parallel::StepResult& result);
};

// A step of the last finished window of steps (stragglers.h), on average, microseconds: computing,
// waiting in attention's ring, waiting for peers elsewhere (sums over TP ranks, sampled ids).
struct RankRecent {
  double compute_us = 0, ring_us = 0, other_us = 0;
  double excess = 0;       // compute time over the ranks' median, less one; 0 before a first window
  bool straggles = false;  // it has been over it for long: a warning names it
};

struct RankStatus {
  RankInfo info;
  int64_t kv_rows = 0, kv_bytes = 0, resident_bytes = 0, workspace_peak_bytes = 0;
  double step_us = 0, idle_us = 0;
  RankSpent spent{};
  RankRecent recent{};
};

struct ClusterStatus {
  bool serving = false;
  std::string why_not;  // "waiting for ranks 1, 3", "rank 2 lost: ..."
  int64_t epoch = 0;
  parallel::Topology topology;
  parallel::MachineProfile profile;
  std::string profile_source;    // "measured", "measured, then learned in 2 epochs: ..."
  int64_t kv_capacity_rows = 0;  // per rank
  std::vector<RankStatus> ranks;
  int64_t steps[parallel::kVariants] = {0, 0, 0};  // groups run by variant, this epoch
  int64_t steps_total = 0, decode_steps = 0;
  int64_t plans_ahead =
      0;  // decode steps whose successor was already at the ranks when they ended (all ranks)
  int64_t requests_running = 0, requests_waiting = 0, sessions = 0;
};

class Engine {
 public:
  // tokenizer may be null: then tokens have no text and stop strings are refused. Owns the link.
  Engine(const parallel::LlamaConfig& config, std::shared_ptr<const Tokenizer> tokenizer,
         std::unique_ptr<RankLink> link, const EngineOptions& options);
  ~Engine();  // cancels what runs

  // Error: the request is refused and the sink is never called (INVALID_ARGUMENT,
  // RESOURCE_EXHAUSTED, UNAVAILABLE...). Otherwise the id for cancel(); the sink gets Accepted
  // first and Finished or Failed last.
  absl::StatusOr<int64_t> submit(GenerateRequest request, EventSink sink);
  void cancel(int64_t id);

  // Fails all requests with this status; later ones are refused until another epoch begins.
  void fail_all(const absl::Status& why);

  // Drops a session's tokens from position `length` on; NOT_FOUND, FAILED_PRECONDITION while it
  // runs. length 0 closes it.
  absl::Status rewind_session(const std::string& session, int64_t length);
  absl::StatusOr<std::vector<int32_t>> session_tokens(const std::string& session) const;

  ClusterStatus status() const;
  EngineMetrics metrics() const;  // since this engine was made
  // Seconds since the engine thread last came round. It does so every second, work or none, so that
  // more means a thread that hangs. Takes no lock.
  double stalled_s() const;
  int64_t context() const;
  // Called with true when ranks are ready, false when an epoch is lost; from the engine thread.
  void on_serving(std::function<void(bool)> callback);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::server
