// SPDX-License-Identifier: Apache-2.0
// `annulus-bench latency`: time to the first token and between tokens over context length, CP, TP,
// miss rate and attention variant, of a running server (--address), of servers it starts one after
// another (--model), or of results from elsewhere (--from), as a table, JSON, CSV and figures. Exit
// status: 0; 1: something failed or an answer is wrong; 2: the caller can mend it.
#pragma once

namespace annulus::bench {

int bench_latency(int argc, char** argv);

}  // namespace annulus::bench
