// SPDX-License-Identifier: Apache-2.0
// ThreadWorld: the ranks of one epoch as threads of one process; for tests. Messages are copied
// into mailboxes keyed by (receiver, sender, tag), so a send never waits. Make one, give groups(r)
// to thread r, destroy it when the threads have ended. An abort or an error on any rank poisons all
// of them: nobody waits for a rank that has thrown. Errors: DeviceError, worded as in production.
#pragma once

#include <memory>
#include <string>

#include "kernels/cpu/queue.h"
#include "parallel/communicator.h"
#include "parallel/topology.h"

namespace annulus::parallel {

class ThreadWorld {
 public:
  explicit ThreadWorld(Topology topology, int64_t epoch = 1);
  ~ThreadWorld();
  ThreadWorld(const ThreadWorld&) = delete;
  ThreadWorld& operator=(const ThreadWorld&) = delete;

  Groups<kernels::CpuQueue> groups(int32_t world_rank);
  void abort(const std::string& why);  // any thread

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::parallel
