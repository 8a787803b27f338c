// SPDX-License-Identifier: Apache-2.0
// annulus-bench policy: sweeps the KV-cache miss rate, predicts, chooses, and measures all variants
// interleaved.
#pragma once

namespace annulus::bench {

int bench_policy(int argc, char** argv);

}  // namespace annulus::bench
