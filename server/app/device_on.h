// SPDX-License-Identifier: Apache-2.0
// Device and EpochRank for one backend, which gives
//   Queue, World                      the types
//   name(), ready_for(topology), fault()
//   queue() -> unique_ptr<Queue>      for a rank, on the thread that will use it: after world(),
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
#include <span>
#include <string>
#include <utility>

#include "server/app/device.h"

namespace annulus::server {

template <class Backend>
class EpochRankOn final : public EpochRank {
 public:
  using Queue = typename Backend::Queue;
  using Weights = std::shared_ptr<const parallel::LlamaWeights<Queue>>;

  EpochRankOn(Backend backend, int64_t epoch, parallel::Topology topology, int32_t world_rank,
              Weights weights, std::unique_ptr<typename Backend::World> world)
      : backend_(std::move(backend)),
        epoch_(epoch),
        topology_(topology),
        world_rank_(world_rank),
        weights_(std::move(weights)),
        world_(std::move(world)) {}

  int64_t epoch() const override { return epoch_; }
  std::string address() const override { return world_->address(); }

  absl::StatusOr<parallel::MachineProfile> meet(std::span<const std::string> addresses,
                                                const parallel::LlamaConfig& config,
                                                const parallel::RankOptions& options) override {
    if (auto status = world_->connect(addresses); !status.ok()) return status;
    auto rank = parallel::Rank::create(config, std::move(weights_), backend_.queue(),
                                       world_->groups(), topology_, world_rank_, epoch_, options);
    if (!rank.ok()) return rank.status();
    {
      const std::lock_guard lock(mutex_);
      rank_ = *std::move(rank);
    }
    return rank_->measure();
  }

  absl::StatusOr<RankExamination> examine(
      std::span<const std::string> addresses,
      const std::function<void(int done, int of)>& told) override {
    if (auto status = world_->connect(addresses); !status.ok()) return status;
    queue_ = backend_.queue();
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
  const Backend backend_;
  const int64_t epoch_;
  const parallel::Topology topology_;
  const int32_t world_rank_;
  Weights weights_;           // until meet()
  mutable std::mutex mutex_;  // of the pointer below, not of what it points to
  // Outlive the world, which may still write into their memory.
  std::unique_ptr<Queue> queue_;  // of examine()
  std::unique_ptr<parallel::Rank> rank_;
  std::unique_ptr<typename Backend::World> world_;
};

template <class Backend>
class DeviceOn final : public Device {
 public:
  using Weights = parallel::LlamaWeights<typename Backend::Queue>;

  explicit DeviceOn(Backend backend) : backend_(std::move(backend)) {}

  std::string name() const override { return backend_.name(); }
  absl::Status ready_for(parallel::Topology topology) const override {
    return backend_.ready_for(topology);
  }

  absl::Status load(const parallel::Checkpoint& checkpoint, int32_t tp_rank, int32_t tp,
                    kernels::Precision precision, const parallel::LoadProgress& progress) override {
    weights_.reset();
    const auto queue = backend_.loader();
    auto weights = parallel::load_weights(*queue, checkpoint, tp_rank, tp, precision, progress);
    if (!weights.ok()) return weights.status();
    weights_ = std::make_shared<const Weights>(*std::move(weights));
    return absl::OkStatus();
  }
  std::string fault() const override { return backend_.fault(); }
  int64_t weight_bytes() const override { return weights_ ? weights_->bytes : 0; }

  absl::StatusOr<std::shared_ptr<EpochRank>> begin(int64_t epoch, parallel::Topology topology,
                                                   int32_t world_rank) override {
    auto world = backend_.world(topology, world_rank, epoch);
    if (!world.ok()) return world.status();
    return std::make_shared<EpochRankOn<Backend>>(backend_, epoch, topology, world_rank, weights_,
                                                  *std::move(world));
  }

 private:
  Backend backend_;
  std::shared_ptr<const Weights> weights_;
};

}  // namespace annulus::server
