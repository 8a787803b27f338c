// SPDX-License-Identifier: Apache-2.0
// annulus-bench weights: how long it takes until every rank has its weights, where each reads the
// model's file and where one reads it and sends what it has packed down the chain of its peers.
#pragma once

namespace annulus::bench {

int bench_weights(int argc, char** argv);

}  // namespace annulus::bench
