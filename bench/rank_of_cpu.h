// SPDX-License-Identifier: Apache-2.0
// `annulus-bench rank-of`: rank_of.h on this machine's CPU.
#pragma once

namespace annulus::bench {

int bench_rank_of(int argc, char** argv);

}  // namespace annulus::bench
