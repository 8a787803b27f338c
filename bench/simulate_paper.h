// SPDX-License-Identifier: Apache-2.0
// annulus-bench simulate paper: Tables 4 to 8 of arXiv 2411.01783 and its TTFT points, simulated
// beside published, with relative errors: rows that constants were calibrated on apart from the
// held-out ones, prefill apart from decode; then what the published numbers say against each other.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/simulate_engine.h"
#include "bench/simulate_machine.h"

namespace annulus::bench {

struct PaperRow {
  std::string table, what;
  double published = 0, simulated = 0;  // the same unit
  bool us = false;                      // else milliseconds
  bool calibration = false, decode = false;
  // Of prefill over several nodes: simulated without hop_launch_us, and hops of a layer.
  double bare_ms = 0;
  int32_t hops = 0;
  double error_percent() const { return 100 * (simulated / published - 1); }
};

absl::StatusOr<std::vector<PaperRow>> paper_rows(const Machine& machine);
// Median absolute error in percent of the held-out rows (or those calibrated on).
double median_error(const std::vector<PaperRow>& rows, bool decode, bool calibration);

absl::Status print_paper(const Machine& machine);

}  // namespace annulus::bench
