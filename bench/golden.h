// SPDX-License-Identifier: Apache-2.0
// annulus-bench golden: runs a case file of tests/golden through an engine of real processes and
// writes what check.py judges.
#pragma once

namespace annulus::bench {

int bench_golden(int argc, char** argv);

}  // namespace annulus::bench
