// SPDX-License-Identifier: Apache-2.0
// `annulus worker`: one rank as a process. Attaches to the front end, is given a rank, reads its
// slice of the weights or is sent it by a peer, and then, epoch after epoch, meets the other ranks
// and answers plans. Weights stay as long as tensor-parallel slice and precision do; everything
// else dies with its epoch. Threads: this one computes, one reads the control stream, one sends
// heartbeats, and while weights are read and sent on, one reads.
// Exit codes: 0 told to end, 1 the front end is gone for good, 2 refused (one line says why), 3 its
// GPU or NCCL can do nothing more in this process.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "kernels/cpu/queue.h"
#include "parallel/model/config.h"

namespace annulus::server {

struct WorkerOptions {
  std::string connect;  // host:port of the front end's control server
  int32_t wanted_rank = -1;
  int32_t local_rank = -1;  // among the ranks of this host; -1: not known
  std::string model;        // "": without no_model, examined by `annulus doctor`
  bool no_model = false;    // this host has none: peers send everything
  parallel::ConfigOverrides overrides;
  int32_t threads = 1;
  kernels::CpuIsa isa = kernels::CpuIsa::kPortable;
  bool cuda = false;  // on a GPU; threads, isa and transports are the CPU's
  int32_t gpu = -1;   // which; -1: by rank
  std::string secret;
  std::string transports;                             // UCX's list; empty: it chooses per peer
  absl::Duration orphan_timeout = absl::Seconds(60);  // without a front end: end
  absl::Duration drain_timeout;  // after SIGTERM, for a front end that drains: end
  int64_t max_message_bytes = int64_t{256} << 20;
};

int run_worker(const WorkerOptions& options);

}  // namespace annulus::server
