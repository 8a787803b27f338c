// SPDX-License-Identifier: Apache-2.0
// What a worker computes on, chosen once: the CPU or one GPU. A Device holds the weights of the
// last assignment over epochs; an EpochRank is what it holds in one: the data plane and the Rank,
// made in steps, because the addresses of all ranks travel in between: connect(), load(), meet().
// Used by the compute thread, save EpochRank's abort() and breadcrumb(), which any thread calls at
// any time. Errors: Status for what an operator can mend, DeviceError from load(), meet() and
// rank().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/timeline.h"
#include "kernels/cpu/queue.h"
#include "kernels/weight.h"
#include "parallel/examine.h"
#include "parallel/model/checkpoint.h"
#include "parallel/model/weights.h"
#include "parallel/rank.h"
#include "parallel/ring_policy.h"
#include "parallel/topology.h"
#include "parallel/weight_transfer.h"
#include "server/app/sizing.h"
#include "server/examination.h"

namespace annulus::server {

class EpochRank {
 public:
  virtual ~EpochRank() = default;
  virtual int64_t epoch() const = 0;
  virtual std::string address() const = 0;
  virtual absl::Status connect(std::span<const std::string> addresses) = 0;
  // The device holds the weights afterwards, and those that the route names have been sent them.
  // They are the device's even where it throws because a receiver was lost.
  virtual absl::Status load(const parallel::Checkpoint& checkpoint,
                            const parallel::WeightRoute& route,
                            const parallel::LoadProgress& progress) = 0;
  // Waits until all ranks have weights, and measures the machine together with them. timeline: gets
  // what the rank does after that, and outlives it; null: nothing does.
  virtual absl::StatusOr<parallel::MachineProfile> meet(const parallel::LlamaConfig& config,
                                                        const parallel::RankOptions& options,
                                                        kernels::Timeline* timeline) = 0;
  // Connects to the others and measures everybody by itself, without weights, instead of meet().
  // The facts are those that only the device and its links know (server/examination.h).
  virtual absl::StatusOr<RankExamination> examine(
      std::span<const std::string> addresses,
      const std::function<void(int done, int of)>& told) = 0;
  virtual bool met() const = 0;
  virtual parallel::Rank& rank() = 0;
  virtual void abort(const std::string& why) = 0;
  virtual parallel::Rank::Breadcrumb breadcrumb() const = 0;
};

// What an epoch is made of, beside its weights.
struct EpochWish {
  parallel::Topology topology;
  bool cudnn_attention = false;  // segments of many rows of a bf16 cache, heads of 64 or 128
};

// Which weights.
struct WeightKey {
  uint64_t fingerprint = 0;  // of the model
  int32_t tp = 0, tp_rank = -1;
  kernels::Precision precision = kernels::Precision::kDefault;
  friend bool operator==(const WeightKey&, const WeightKey&) = default;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "avx2", "NVIDIA H100 80GB HBM3"
  // FailedPrecondition where it cannot be a rank of such an epoch, for NCCL or cuDNN is missing or
  // it is no GPU: asked before anything is loaded.
  virtual absl::Status ready_for(const EpochWish& wish) const = 0;
  // What it has for a rank now, beside the weights it holds; empty: as much as one takes (CPUs, for
  // weights there are mapped). Asked between epochs. FailedPrecondition where it cannot be used.
  virtual absl::StatusOr<std::optional<DeviceRoom>> room() const = 0;
  virtual bool holds_weights() const = 0;
  virtual int64_t weight_bytes() const = 0;
  // Why no later epoch can run in this process; empty where one can. Asked when an epoch has
  // failed.
  virtual std::string fault() const = 0;
  // A rank that will have these weights. Others that the device holds are dropped: both at once
  // might not fit. The device outlives the rank.
  virtual absl::StatusOr<std::shared_ptr<EpochRank>> begin(int64_t epoch, const EpochWish& wish,
                                                           int32_t world_rank,
                                                           const WeightKey& key) = 0;
};

// transports: UCX's list; empty: it chooses per peer.
std::unique_ptr<Device> make_cpu_device(int32_t threads, kernels::CpuIsa isa,
                                        const std::string& transports);
// FailedPrecondition, saying what is missing: CUDA in this build, a GPU, a driver or cuBLAS. NCCL
// and cuDNN are looked for when an epoch needs them: of more than one rank, of its attention.
absl::StatusOr<std::unique_ptr<Device>> make_cuda_device(int32_t gpu);
// FailedPrecondition where GPUs of this host cannot have cuDNN's attention, saying what is missing:
// CUDA in this build, or cuDNN.
absl::Status check_cudnn();
// GPUs that this process may use; 0 where there is none.
int32_t cuda_device_count();
// What GPUs 0, 1, ... of this host have free. For a process that computes on none: it holds nothing
// of them afterwards.
absl::StatusOr<std::vector<DeviceRoom>> room_of_gpus(int32_t count);

}  // namespace annulus::server
