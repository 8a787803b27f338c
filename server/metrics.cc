// SPDX-License-Identifier: Apache-2.0
#include "server/metrics.h"

#include <algorithm>
#include <cmath>

namespace annulus::server {
namespace {

double seconds_of(double us) {
  return std::isfinite(us) && us > 0 ? us * 1e-6 : 0;
}

}  // namespace

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin();
  ++counts[static_cast<size_t>(bucket)];
  sum += value;
}

void EngineMetrics::count_step(const StepSummary& summary,
                               std::span<const parallel::StepResult> results) {
  double slowest_s = 0;
  for (const parallel::StepResult& result : results) {
    RankCounts& counts = ranks.at(static_cast<size_t>(result.world_rank));
    const double step_s = seconds_of(result.step_us);
    const double waited_s = std::min(seconds_of(result.waited_us), step_s);
    double ring_s = 0;
    for (const parallel::GroupReport& group : result.groups) {
      ring_s += seconds_of(group.exposed_us);
      counts.sent_bytes += std::max<int64_t>(group.bytes_sent, 0);
    }
    counts.compute_s += step_s - waited_s;
    counts.ring_s += std::min(ring_s, waited_s);
    counts.other_s += std::max(waited_s - ring_s, 0.0);
    counts.idle_s += seconds_of(result.idle_us);
    slowest_s = std::max(slowest_s, step_s);
  }
  if (summary.groups.empty()) return;  // it only gave memory back
  const auto phase =
      static_cast<size_t>(summary.decode_only ? StepPhase::kDecode : StepPhase::kPrefill);
  for (const StepSummary::Group& group : summary.groups) {
    ++steps[phase][static_cast<size_t>(group.variant)];
  }
  step_time[phase].observe(slowest_s);
}

void RequestCounts::count(absl::StatusCode code) {
  const auto index = static_cast<size_t>(code);
  const auto unknown = static_cast<size_t>(absl::StatusCode::kUnknown);
  counts_[index < kCodes ? index : unknown].fetch_add(1, std::memory_order_relaxed);
}

std::array<int64_t, RequestCounts::kCodes> RequestCounts::read() const {
  std::array<int64_t, kCodes> out{};
  for (size_t code = 0; code < kCodes; ++code) {
    out[code] = counts_[code].load(std::memory_order_relaxed);
  }
  return out;
}

}  // namespace annulus::server
