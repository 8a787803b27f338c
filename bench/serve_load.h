// SPDX-License-Identifier: Apache-2.0
// `annulus-bench serve`: a load of independent requests against a running server or one it starts:
// Poisson arrivals (--rate) or a closed loop (--concurrency), lengths fixed or drawn evenly. Prints
// what vLLM's serving benchmark prints and writes its JSON. Exit status: 0; 1: a request failed
// (the figures are of the others); 2: the caller can mend it.
#pragma once

namespace annulus::bench {

int bench_serve(int argc, char** argv);

}  // namespace annulus::bench
