// SPDX-License-Identifier: Apache-2.0
// annulus-bench simulate: the engine in virtual time on machines that are not here. Subcommands:
// run, paper (the published tables beside the simulated ones), best, passq, links, decode, scale.
// Exit 2 with one line for bad input.
#pragma once

namespace annulus::bench {

int bench_simulate(int argc, char** argv);

}  // namespace annulus::bench
