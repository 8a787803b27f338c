// SPDX-License-Identifier: Apache-2.0
// `annulus-bench throughput`: prompt and generation tokens per second of the served engine beside
// what this machine can do in the same minute: multiply rate, read bandwidth, and how two
// independent copies of the peak test scale. Every row says which fraction it reached and the floor
// it is held to. --profile says where a step's time goes instead. Exit status: 0 also where a floor
// is missed (the table says so), 1 where something failed, 2 for bad flags.
#pragma once

namespace annulus::bench {

int bench_throughput(int argc, char** argv);

}  // namespace annulus::bench
