// SPDX-License-Identifier: Apache-2.0
// `annulus-bench link`: round trip and exchange bandwidth between two processes by message size,
// over UCX shared memory and TCP, through the engine's own Communicator. Ranks are pinned to cores
// 0 and 1. Call before the program has other threads (it forks). Exit status: 0, 1 where data were
// wrong or a rank failed, 2 for bad flags.
#pragma once

namespace annulus::bench {

int bench_link(int argc, char** argv);

}  // namespace annulus::bench
