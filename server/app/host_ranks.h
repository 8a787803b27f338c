// SPDX-License-Identifier: Apache-2.0
// `annulus worker --ranks N`: all ranks of one host, each a process of its own, where the launcher
// starts one process a host (a LeaderWorkerSet's pod). One that dies is started again; the first
// SIGTERM or SIGINT is passed on as SIGTERM, a second one ends them at once. They are not pinned:
// the launcher says which cores are the host's, and pods may share them. From main(), before
// any other thread exists. Exit codes are those of the ranks, the largest; 2 also where one of them
// cannot be kept alive.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace annulus::server {

struct HostRanks {
  std::vector<std::string> arguments;  // of each rank; --rank R is added
  int32_t first_rank = 0, ranks = 1;
};

int run_host_ranks(const HostRanks& host);

}  // namespace annulus::server
