// SPDX-License-Identifier: Apache-2.0
// Rank: one worker's share of the engine in one epoch: weights, KV store, communicators and the
// shard state that it folds plans over. apply(plan) runs one step; begin() and end() are its
// halves, for a device that has the next step when it is done with one. One thread owns a Rank.
// Weights are shared and survive the epoch; everything else dies with it. The same for every
// device: create() takes the queue of one (rank_inl.h). Errors: create() returns Status for what an
// operator can mend; begin() returns Status for plans that cannot be (digest mismatch, unknown
// slot, an id outside the vocabulary), all throw DeviceError (peer lost, abort, deadline, KV full).
// Either ends the epoch, whatever is under way.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/queue.h"
#include "kernels/weight.h"
#include "parallel/communicator.h"
#include "parallel/model/config.h"
#include "parallel/model/weights.h"
#include "parallel/ring_policy.h"
#include "parallel/sharding.h"
#include "parallel/step.h"
#include "parallel/topology.h"

namespace annulus::parallel {

struct RankOptions {
  kernels::Precision precision =
      kernels::Precision::kDefault;  // kF32: KV and activations in fp32 too
  int64_t kv_capacity_rows =
      0;  // KV rows this rank can hold; 0: what `context` needs spread over cp, plus 1/8
  int64_t context = 0;  // served context; 0: the model's
  int32_t page_tokens = 64;
  int64_t workspace_limit_bytes = int64_t{256} << 20;
  bool profile = false;  // StepResult::phase_us
  // On GPUs: decode steps that come again are CUDA graphs. Alike on all ranks.
  bool graphs = true;
  // On GPUs: measure() times the library's algorithms for this model's matrices and keeps the
  // fastest, so that bits may differ between epochs.
  bool tune_gemm = false;
  // Of the CpuQueue that a rank on CPUs gets.
  int32_t threads = 1;
  kernels::CpuIsa isa = kernels::detect_cpu_isa();
};

// What the attention of a rank looks like to the policy.
AttentionShape attention_shape(const LlamaConfig& config, const Topology& topology,
                               kernels::Precision precision);

// KV rows of a rank that is told none: a context spread over the CP ranks, an eighth for uneven
// rows and other sequences, and some open pages.
inline int64_t default_kv_rows(int64_t context, int32_t cp, int32_t page_tokens) {
  return context / cp + context / (int64_t{8} * cp) + int64_t{64} * page_tokens;
}

class Rank {
 public:
  // `weights` are those of topology.tp_rank(world_rank). groups outlive the Rank.
  template <class Queue>
  static absl::StatusOr<std::unique_ptr<Rank>> create(
      const LlamaConfig& config, std::shared_ptr<const LlamaWeights<Queue>> weights,
      std::unique_ptr<Queue> queue, Groups<Queue> groups, Topology topology, int32_t world_rank,
      int64_t epoch, const RankOptions& options);
  virtual ~Rank() = default;

  // Collective over all ranks, about half a second: rates of this machine, the slowest rank's. The
  // same numbers everywhere.
  virtual MachineProfile measure() = 0;

  // One step. The plan was encoded for this rank; one that is refused has changed nothing.
  // `deadline`: if nothing moves until then, waits for peers throw; every layer, hop and block of
  // logits that is reached puts it off by as much. begin() enqueues the step, end() waits for the
  // oldest that was begun. A step begun behind another has its time from that one's end on, and
  // gives that one none.
  using Told = std::function<void(StepResult)>;
  // `told`: of a step that ends while this one is enqueued, instead of end(); empty: never.
  virtual absl::Status begin(const StepPlan& plan, std::chrono::steady_clock::time_point deadline,
                             const Told& told) = 0;
  // False: `woken` said so (asked now and then) before the oldest step had ended.
  virtual bool wait(const std::function<bool()>& woken) = 0;
  virtual StepResult end() = 0;
  virtual int32_t begun() const = 0;  // and not ended
  // How many may be: 2 on a GPU; 1 where work runs at the call (CPUs), and under profile, which
  // waits for the device after every phase.
  virtual int32_t most_begun() const = 0;
  // Both halves, with nothing else under way.
  absl::StatusOr<StepResult> apply(const StepPlan& plan,
                                   std::chrono::steady_clock::time_point deadline);

  // Any thread: what this rank is doing, for time-out messages and heartbeats. progress counts
  // layers, hops and blocks of logits begun; the layer after the last is the head.
  struct Breadcrumb {
    int64_t step, progress;
    int32_t layer, hop;
  };
  virtual Breadcrumb breadcrumb() const = 0;

  virtual int64_t kv_capacity_rows() const = 0;
  virtual const ShardState& state() const = 0;
};

}  // namespace annulus::parallel
