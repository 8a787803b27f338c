// SPDX-License-Identifier: Apache-2.0
// annulus-bench recall: a prompt of up to a million tokens through gRPC into an engine of
// processes, with a constructed model whose answers prove the ring. See recall_model.h.
#pragma once

namespace annulus::bench {

int bench_recall(int argc, char** argv);

}  // namespace annulus::bench
