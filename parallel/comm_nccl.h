// SPDX-License-Identifier: Apache-2.0
// NcclWorld: the GPU data plane of one rank and one epoch, one GPU a process. As UcxWorld: create,
// send address() through the control plane, connect(all addresses), groups(), destroy.
// Communicators are non-blocking: every call returns at once, and what is in progress is polled up
// to the deadline. Hops run on a stream of high priority, so that they have a place beside
// attention; everything else in the queue's own order. Every rank issues the operations of all
// groups in one order, which the plan fixes. Sums are NCCL's: the same bits on every rank, in an
// order that NCCL chooses by size. Small sums over the TP group (symmetric_memory()) go through
// memory that the ranks of a host share, by NCCL 2.30 or newer where they reach each other's, on a
// communicator of their own: a failed registration costs that one alone, which then goes at once. A
// lost peer shows in NCCL's asynchronous error or not at all: the control plane calls abort(), or
// the deadline of the queue's finish() decides. Abort is given 5 s; then the process ends, because
// a kernel that waits for a lost peer cannot be ended otherwise.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/queue.h"
#include "parallel/communicator.h"
#include "parallel/nccl_api.h"
#include "parallel/topology.h"

namespace annulus::parallel {

struct NcclOptions {
  // All groups together; below the minute after which the front end gives ranks up.
  std::chrono::milliseconds connect_limit{40000};
  std::chrono::milliseconds abort_limit{5000};
  // The largest sum that takes symmetric memory, on every rank; 0: none does. At 2 MiB a sum over 8
  // H100s moves 2 x 7 / 8 x 2 MiB through a GPU's links, 8 us at 450 GB/s, as long as NCCL expects
  // its symmetric kernels to take for nothing (7.8 us): what larger sums gain is the smaller part
  // of their time. It is also what the smallest such piece of memory takes.
  int64_t symmetric_bytes = int64_t{2} << 20;
  // Of connect_limit: then sums go without, for a rank that fails leaves the others waiting.
  std::chrono::milliseconds symmetric_limit{10000};
};

// What a process whose communicators cannot be aborted ends with.
inline constexpr int kNcclHungExit = 3;

class NcclWorld {
 public:
  // api outlives the world. The calling thread uses the GPU (use_cuda_device, or a queue).
  static absl::StatusOr<std::unique_ptr<NcclWorld>> create(const NcclApi& api, Topology topology,
                                                           int32_t world_rank, int64_t epoch,
                                                           const NcclOptions& options = {});
  ~NcclWorld();
  NcclWorld(const NcclWorld&) = delete;
  NcclWorld& operator=(const NcclWorld&) = delete;

  // Opaque bytes: the ids of the groups that this rank leads.
  std::string address() const;
  // Addresses of all world ranks in rank order; waits for all of them. InvalidArgument,
  // FailedPrecondition: bytes that are no address, or of another rank, layout or epoch.
  // Unavailable: NCCL's own reason, or no answer within connect_limit.
  absl::Status connect(std::span<const std::string> addresses);
  // After connect; they live as long as the world.
  Groups<kernels::CudaQueue> groups();
  void abort(const std::string& why);  // any thread

 private:
  struct Impl;
  explicit NcclWorld(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::parallel
