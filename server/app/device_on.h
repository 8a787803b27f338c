// SPDX-License-Identifier: Apache-2.0
// Device and EpochRank for one backend, which gives
//   Queue, World                      the types
//   name(), ready_for(wish), fault(), room()
//   queue(cudnn_attention) -> unique_ptr<Queue>
//                                     for a rank, on the thread that will use it: after world(),
//                                     whose threads must not inherit a pinned core
//   loader() -> unique_ptr<Queue>     to load weights with
//   world(topology, world_rank, epoch) -> StatusOr<unique_ptr<World>>
//   transports(world, world_rank)     what reaches a peer, for `annulus doctor`
//   versions()                        facts of server/examination.h
// Included by device_cpu.cc and device_cuda.cc.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "server/app/device.h"

namespace annulus::server {

// What a device holds over epochs; null: nothing yet. The digest is taken where there are peers to
// compare it with.
template <class Queue>
struct HeldWeights {
  std::shared_ptr<const parallel::LlamaWeights<Queue>> weights;
  std::optional<uint64_t> digest;
};

template <class Backend>
class EpochRankOn final : public EpochRank {
 public:
  using Queue = typename Backend::Queue;

  EpochRankOn(Backend backend, int64_t epoch, const EpochWish& wish, int32_t world_rank,
              kernels::Precision precision, HeldWeights<Queue>& held,
              std::unique_ptr<typename Backend::World> world)
      : backend_(std::move(backend)),
        epoch_(epoch),
        topology_(wish.topology),
        cudnn_attention_(wish.cudnn_attention),
        world_rank_(world_rank),
        precision_(precision),
        held_(held),
        world_(std::move(world)) {}

  int64_t epoch() const override { return epoch_; }
  std::string address() const override { return world_->address(); }
  absl::Status connect(std::span<const std::string> addresses) override {
    return world_->connect(addresses);
  }

  absl::Status load(const parallel::Checkpoint& checkpoint, const parallel::WeightRoute& route,
                    const parallel::LoadProgress& progress) override {
    loader_ = backend_.loader();
    absl::Status status = get(checkpoint, route, progress);
    if (status.ok() && topology_.cp > 1 && !held_.digest)
      held_.digest = parallel::digest_of(*loader_, *held_.weights);
    return status;
  }

  absl::StatusOr<parallel::MachineProfile> meet(const parallel::LlamaConfig& config,
                                                const parallel::RankOptions& options,
                                                kernels::Timeline* timeline) override {
    absl::Status same = parallel::compare_weights(*loader_, *world_->groups().world, topology_,
                                                  held_.digest.value_or(0));
    if (!same.ok()) {
      held_ = {};  // nobody knows whose are wrong: the next epoch loads them again
      return same;
    }
    auto queue = backend_.queue(cudnn_attention_);
    kernels::PhaseClock& phases = queue->phases();  // the rank's, which lives as long
    auto rank = parallel::Rank::create(config, held_.weights, std::move(queue), world_->groups(),
                                       topology_, world_rank_, epoch_, options);
    if (!rank.ok()) return rank.status();
    {
      const std::lock_guard lock(mutex_);
      rank_ = *std::move(rank);
    }
    auto profile = rank_->measure();
    if (timeline != nullptr) phases.record(timeline);
    return profile;
  }

  absl::StatusOr<RankExamination> examine(
      std::span<const std::string> addresses,
      const std::function<void(int done, int of)>& told) override {
    if (auto status = world_->connect(addresses); !status.ok()) return status;
    queue_ = backend_.queue(cudnn_attention_);
    const parallel::Examination measured = parallel::examine(*queue_, world_->groups(), told);
    RankExamination out{.figures = {}, .facts = backend_.versions()};
    for (size_t i = 0; i < measured.size(); ++i) {
      if (!measured[i].empty()) {
        out.figures[parallel::name(static_cast<parallel::Figure>(i))] = measured[i];
      }
    }
    const int32_t tp = topology_.tp_rank(world_rank_), cp = topology_.cp_rank(world_rank_);
    const int32_t cp_next = topology_.world_rank(tp, (cp + 1) % topology_.cp);
    const int32_t tp_next = topology_.world_rank((tp + 1) % topology_.tp, cp);
    if (topology_.cp > 1) out.facts[fact::kCpTransport] = backend_.transports(*world_, cp_next);
    if (topology_.tp > 1) out.facts[fact::kTpTransport] = backend_.transports(*world_, tp_next);
    return out;
  }
  bool met() const override { return rank_ != nullptr; }
  parallel::Rank& rank() override { return *rank_; }
  void abort(const std::string& why) override { world_->abort(why); }
  parallel::Rank::Breadcrumb breadcrumb() const override {
    const std::lock_guard lock(mutex_);
    return rank_ ? rank_->breadcrumb() : parallel::Rank::Breadcrumb{};
  }

 private:
  // Weights into held_, and on to whom the route says.
  absl::Status get(const parallel::Checkpoint& checkpoint, const parallel::WeightRoute& route,
                   const parallel::LoadProgress& progress) {
    auto& cp = *world_->groups().cp;
    const parallel::WeightWish wish{
        checkpoint, topology_.tp_rank(world_rank_), topology_.tp, precision_, route, progress};
    if (held_.weights != nullptr) {
      if (route.to >= 0) parallel::send_weights(*loader_, cp, wish, *held_.weights);
      return absl::OkStatus();
    }
    incoming_ = std::make_shared<parallel::LlamaWeights<Queue>>();
    const absl::Cleanup keep = [this] {  // a reader's also where a receiver was lost
      if (incoming_->whole) held_ = {.weights = incoming_, .digest = {}};
    };
    if (route.from >= 0) return parallel::receive_weights(*loader_, cp, wish, *incoming_);
    const std::function loader = [this] { return backend_.loader(); };
    return parallel::read_weights<Queue>(*loader_, loader, cp, wish, *incoming_);
  }

  const Backend backend_;
  const int64_t epoch_;
  const parallel::Topology topology_;
  const bool cudnn_attention_;
  const int32_t world_rank_;
  const kernels::Precision precision_;
  HeldWeights<Queue>& held_;  // the device's
  mutable std::mutex mutex_;  // of rank_, not of what it points to
  // These outlive the world, which may still write into their memory.
  std::unique_ptr<Queue> loader_;
  std::shared_ptr<parallel::LlamaWeights<Queue>> incoming_;
  std::unique_ptr<Queue> queue_;  // of examine()
  std::unique_ptr<parallel::Rank> rank_;
  std::unique_ptr<typename Backend::World> world_;
};

template <class Backend>
class DeviceOn final : public Device {
 public:
  explicit DeviceOn(Backend backend) : backend_(std::move(backend)) {}

  std::string name() const override { return backend_.name(); }
  absl::Status ready_for(const EpochWish& wish) const override { return backend_.ready_for(wish); }

  std::string fault() const override { return backend_.fault(); }
  absl::StatusOr<std::optional<DeviceRoom>> room() const override {
    auto out = backend_.room();
    if (out.ok() && out->has_value()) (*out)->held_bytes = weight_bytes();
    return out;
  }
  bool holds_weights() const override { return held_.weights != nullptr; }
  int64_t weight_bytes() const override { return held_.weights ? held_.weights->bytes : 0; }

  absl::StatusOr<std::shared_ptr<EpochRank>> begin(int64_t epoch, const EpochWish& wish,
                                                   int32_t world_rank,
                                                   const WeightKey& key) override {
    if (std::exchange(key_, key) != key) held_ = {};
    auto world = backend_.world(wish.topology, world_rank, epoch);
    if (!world.ok()) return world.status();
    return std::make_shared<EpochRankOn<Backend>>(backend_, epoch, wish, world_rank, key.precision,
                                                  held_, *std::move(world));
  }

 private:
  Backend backend_;
  WeightKey key_;  // of what is held, or was asked for last
  HeldWeights<typename Backend::Queue> held_;
};

}  // namespace annulus::server
