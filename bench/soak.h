// SPDX-License-Identifier: Apache-2.0
// annulus-bench soak: many streams at once with random lengths, cancels, deadlines, disconnects and
// sessions, against a server of its own. Every stream must end with the status that its fate
// allows, texts must equal those of the same requests alone, and nothing may stay behind.
#pragma once

namespace annulus::bench {

int bench_soak(int argc, char** argv);

}  // namespace annulus::bench
