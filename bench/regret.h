// SPDX-License-Identifier: Apache-2.0
// annulus-bench regret: how much each way of choosing a variant loses to the fastest one, measured
// with real ranks over links shaped to several rates (root: network namespaces).
#pragma once

namespace annulus::bench {

int bench_regret(int argc, char** argv);

}  // namespace annulus::bench
