// SPDX-License-Identifier: Apache-2.0
// `annulus-bench attention`: attend() on random data over a table of new tokens x cached tokens x
// heads, per dtype. Prints microseconds, GFLOP/s counted causally, KV bytes read per second, both
// against this machine's measured peaks, and the largest error against the double reference.
#pragma once

namespace annulus::bench {

int bench_attention(int argc, char** argv);

}  // namespace annulus::bench
