// SPDX-License-Identifier: Apache-2.0
// annulus-bench learn: the machine profile from epoch to epoch on real ranks.
#pragma once

namespace annulus::bench {

int bench_learn(int argc, char** argv);

}  // namespace annulus::bench
