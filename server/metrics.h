// SPDX-License-Identifier: Apache-2.0
// What a front end counts from its start to its end: plain numbers that only grow, whatever becomes
// of ranks and epochs. The engine owns EngineMetrics and guards them with its mutex; counting is a
// few additions. RequestCounts belong to the public service; any thread. app/metrics_server.h
// exports both. Times are seconds.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "parallel/step.h"
#include "server/scheduler.h"

namespace annulus::server {

// Observations by the least bound that they do not exceed.
struct Histogram {
  explicit Histogram(std::span<const double> upper) : bounds(upper), counts(upper.size() + 1) {}
  void observe(double value);

  std::span<const double> bounds;  // ascending, static
  std::vector<int64_t> counts;     // one more than bounds: what exceeds them all
  double sum = 0;
};

// A prompt of a million tokens takes minutes; an hour is the last bound.
inline constexpr double kRequestBounds_s[] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,    2.5,
                                              5,     10,   30,    60,   120, 300,  600, 1800, 3600};
inline constexpr double kStepBounds_s[] = {0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03,
                                           0.04,  0.05,   0.075, 0.1,  0.15,  0.25, 0.5,
                                           1,     2.5,    5,     10,   30,    60};

// A step that computes prompt tokens is prefill, whatever decodes beside them.
enum class StepPhase : uint8_t { kPrefill, kDecode };
inline constexpr size_t kStepPhases = 2;
inline constexpr std::array<const char*, kStepPhases> kStepPhaseNames = {"prefill", "decode"};

struct RankCounts {
  double compute_s = 0;
  double ring_s = 0;   // waiting for peers in attention
  double other_s = 0;  // waiting for peers elsewhere: sums over TP ranks, sampled ids
  double idle_s = 0;   // waiting for the front end
  int64_t sent_bytes = 0;
  int64_t straggler_warnings = 0;
};

struct EngineMetrics {
  // A prompt token counts when its KV is there: computed, or found in the cache.
  int64_t prompt_tokens = 0, cached_tokens = 0, generation_tokens = 0;
  Histogram queue{kRequestBounds_s}, first_token{kRequestBounds_s}, finished{kRequestBounds_s};
  Histogram token_gap{kStepBounds_s};
  // Steps that used the variant, some of them two.
  std::array<std::array<int64_t, parallel::kVariants>, kStepPhases> steps{};
  // Of the slowest rank.
  std::array<Histogram, kStepPhases> step_time{Histogram(kStepBounds_s), Histogram(kStepBounds_s)};
  int64_t epochs_lost = 0;
  std::vector<RankCounts> ranks;  // by world rank, as many as an epoch has had

  // A step's results, of all ranks; what is no time in them counts as none.
  void count_step(const StepSummary& summary, std::span<const parallel::StepResult> results);
};

// Requests that have ended, by gRPC code.
class RequestCounts {
 public:
  static constexpr size_t kCodes = 17;  // OK to UNAUTHENTICATED
  void count(absl::StatusCode code);
  std::array<int64_t, kCodes> read() const;

 private:
  std::array<std::atomic<int64_t>, kCodes> counts_{};
};

}  // namespace annulus::server
