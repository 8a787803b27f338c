// SPDX-License-Identifier: Apache-2.0
// RankOn<Queue>: the rank that Rank::create makes on the device of a queue. Its pieces are defined
// in rank_inl.h and rank_answers_inl.h.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/attention.h"
#include "kernels/core/phase.h"
#include "kernels/ops.h"
#include "kernels/sampling.h"
#include "parallel/kv_store.h"
#include "parallel/measure.h"
#include "parallel/model/llama.h"
#include "parallel/model/rope.h"
#include "parallel/rank.h"
#include "parallel/ring_attention.h"
#include "parallel/sampled_ids.h"

namespace annulus::parallel::rank_on {

using kernels::matrix;
using kernels::Phase;
using kernels::Tensor;
using Clock = std::chrono::steady_clock;

constexpr int64_t kLogitRows = 64;  // rows whose logits are held at once

inline double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

inline size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

inline kernels::KvFormat kv_format(const AttentionShape& shape, int32_t page_tokens) {
  return {shape.dtype, shape.kv_heads, shape.head_dim, page_tokens};
}

template <class Queue>
void apply_to_store(KvStore<Queue>& store, const Op& op) {
  switch (op.kind) {
    case Op::Kind::kAdmit: store.admit(op.slot); return;
    case Op::Kind::kSampling:
    case Op::Kind::kRebase: return;
    case Op::Kind::kTruncate: store.truncate(op.slot, op.length); return;
    case Op::Kind::kFork: store.fork(op.from, op.slot, op.length); return;
    case Op::Kind::kRelease: store.release(op.slot); return;
  }
}

// A wanted position that this rank computes.
struct OwnWanted {
  int32_t item = 0;
  int64_t row = 0;  // of this rank's rows of the step
  Wanted wanted;
};

// This rank's rows of a step, groups and items one after the other.
struct StepRows {
  std::vector<int32_t> ids;  // or ~ the place of a sampled one (SampledIds)
  std::vector<int32_t> positions;
  std::vector<int64_t> slot_rows;  // where each row's KV goes
  std::vector<OwnWanted> wanted;   // by item
};

// What the device answers to the wanted rows, on the host once the step is finished; keeps its
// memory.
struct Found {
  std::vector<kernels::LogitAnswer> answers;
  std::vector<kernels::Candidate> top;  // [rows, top_room]
  int64_t top_room = 0;
};

// The ids that a step samples, of every rank; `gathered` in the step's scratch.
struct SharedIds {
  std::vector<int32_t> owners;  // by row of the plan
  std::vector<int64_t> bytes;   // by rank
  std::span<int32_t> gathered;  // by rank
  std::span<int32_t> kept;      // by row
};

// What a step under way needs to be ended. Everything else that begin() has in the host's memory,
// the next begin() may overwrite: uploads have copied it.
template <class Queue>
struct StepUnderWay {
  StepResult result;  // but for what the device says
  std::vector<OwnWanted> wanted;
  Found found;
  typename Queue::Ticket ticket;
  Clock::time_point start, enqueued;
  Clock::duration patience{};  // without progress
  double waited_us = 0;        // before it
};

template <class Queue>
class RankOn final : public Rank {
 public:
  RankOn(const LlamaConfig& config, std::shared_ptr<const LlamaWeights<Queue>> weights,
         std::unique_ptr<Queue> queue, Groups<Queue> groups, Topology topology, int32_t world_rank,
         int64_t epoch, const RankOptions& options, int64_t capacity)
      : config_(config),
        weights_(std::move(weights)),
        groups_(groups),
        topology_(topology),
        world_rank_(world_rank),
        epoch_(epoch),
        owned_queue_(std::move(queue)),
        queue_(*owned_queue_),
        shape_(attention_shape(config, topology, options.precision)),
        tune_gemm_(options.tune_gemm),
        store_(queue_, kv_format(shape_, options.page_tokens), config.layers, capacity),
        frequencies_(rope_frequencies(config)) {
    state_.cp = topology.cp;
    policy_ = {shape_, topology.cp, {}, options.workspace_limit_bytes};
    queue_.phases().enable(options.profile);
    if constexpr (kRepeats) queue_.use_graphs(options.graphs);
    queue_.set_poll([this] {
      groups_.cp->progress();
      if (topology_.tp > 1) groups_.tp->progress();
      if (!Queue::kHostMemory) groups_.world->progress();
    });
  }

  MachineProfile measure() override {
    const Clock::time_point deadline = Clock::now() + std::chrono::seconds(60);
    for (auto* group : {groups_.tp, groups_.cp, groups_.world}) group->set_deadline(deadline);
    if (tune_gemm_) tune_products(queue_, *weights_);
    policy_.profile = measure_machine(queue_, groups_, shape_, *weights_);
    return policy_.profile;
  }
  absl::Status begin(const StepPlan& plan, Clock::time_point deadline, const Told& told) override;
  bool wait(const std::function<bool()>& woken) override {
    name_step(oldest().result.step);
    return queue_.wait(oldest().ticket, deadline_of(oldest()), woken);
  }
  StepResult end() override;
  int32_t begun() const override { return static_cast<int32_t>(begun_ - ended_); }
  int32_t most_begun() const override {
    return Queue::kHostMemory || queue_.phases().enabled() ? 1 : kMostBegun;
  }
  Breadcrumb breadcrumb() const override {
    return {step_.load(), progress_.load(), layer_.load(), hop_.load()};
  }
  int64_t kv_capacity_rows() const override { return store_.capacity_rows(); }
  const ShardState& state() const override { return state_; }

 private:
  static constexpr int32_t kMostBegun = 2;
  static constexpr bool kRepeats = requires(Queue & queue) { queue.use_graphs(true); };
  using UnderWay = StepUnderWay<Queue>;

  // In what goes wrong from here on.
  void name_step(int64_t step) const {
    kernels::set_check_context(absl::StrCat("rank ", world_rank_, ", step ", step));
  }
  UnderWay& oldest() {
    ANNULUS_CHECK(begun() > 0, "no step is under way");
    return steps_[index(ended_ % kMostBegun)];
  }
  Clock::time_point deadline_of(const UnderWay& step) const {
    return std::max(step.enqueued, last_end_) + step.patience;
  }
  void enqueue(const StepPlan& plan, UnderWay& step);
  int32_t cp_rank() const { return topology_.cp_rank(world_rank_); }
  absl::Status check(const StepPlan& plan) const;
  StepRows rows_of(const StepPlan& plan);
  void attend(int32_t layer, std::span<const GroupLayout> layouts,
              std::span<const int64_t> slot_rows, kernels::ConstTensor q, kernels::ConstTensor k,
              kernels::ConstTensor v, Tensor out, StepResult& result);
  std::span<const int32_t> answer_wanted(const StepPlan& plan, std::span<const OwnWanted> rows,
                                         Tensor x, Found& found);
  SharedIds room_for_sampled(const StepPlan& plan);
  void gather_sampled(const SharedIds& ids, std::span<const int32_t> own);
  void keep_sampled(const SharedIds& ids);
  void reached(int32_t at_layer, int32_t at_hop);
  double waited_us() const {  // for peers, since the epoch began
    return groups_.tp->waited_us() + groups_.cp->waited_us() + groups_.world->waited_us();
  }

  LlamaConfig config_;
  std::shared_ptr<const LlamaWeights<Queue>> weights_;
  Groups<Queue> groups_;
  Topology topology_;
  int32_t world_rank_;
  int64_t epoch_;
  std::unique_ptr<Queue> owned_queue_;
  Queue& queue_;
  AttentionShape shape_;
  PolicyInput policy_;
  bool tune_gemm_;
  KvStore<Queue> store_;
  std::vector<double> frequencies_;
  std::vector<float> cos_sin_;  // [rows, head_dim] of the step; keeps its memory
  ShardState state_;
  PositionLists position_lists_;  // of other ranks' rows
  SampledIds<Queue> sampled_;
  std::array<UnderWay, kMostBegun> steps_;  // by number; keep their memory
  int64_t begun_ = 0, ended_ = 0;           // steps
  Clock::time_point last_end_{};
  // Of the step that is being enqueued:
  int64_t workspace_peak_ = 0;  // of attention, bytes
  const Told* told_ = nullptr;  // null: nobody is
  std::atomic<int64_t> step_{0}, progress_{0};
  std::atomic<int32_t> layer_{0}, hop_{0};
  Clock::duration patience_{};  // without progress
};

}  // namespace annulus::parallel::rank_on
