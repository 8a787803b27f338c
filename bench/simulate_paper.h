// SPDX-License-Identifier: Apache-2.0
// annulus-bench simulate paper: Tables 4 to 8 of arXiv 2411.01783 and its TTFT points, simulated
// beside published, with relative errors: rows that constants were calibrated on apart from the
// held-out ones, prefill apart from decode; then what the published numbers say against each other.
#pragma once

#include "absl/status/status.h"
#include "bench/simulate_machine.h"

namespace annulus::bench {

absl::Status print_paper(const Machine& machine);

}  // namespace annulus::bench
