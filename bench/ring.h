// SPDX-License-Identifier: Apache-2.0
// annulus-bench ring: what a ring step sends, holds and hides, against the formulas. See ring.cc
// for the columns.
#pragma once

namespace annulus::bench {

int bench_ring(int argc, char** argv);

}  // namespace annulus::bench
