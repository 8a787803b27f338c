// SPDX-License-Identifier: Apache-2.0
// annulus-bench step: one step of a model on ranks as processes, op by op: time, share, rate, the
// limit measured in the same run, and the fraction of it that was reached.
#pragma once

namespace annulus::bench {

int bench_step(int argc, char** argv);

}  // namespace annulus::bench
