// SPDX-License-Identifier: Apache-2.0
#include "server/app/epoch_rank.h"

#include <utility>

namespace annulus::server {

absl::StatusOr<std::shared_ptr<EpochRank>> EpochRank::create(int64_t epoch,
                                                             parallel::Topology topology,
                                                             int32_t world_rank,
                                                             const std::string& transports) {
  std::shared_ptr<EpochRank> out(new EpochRank(epoch, topology, world_rank));
  parallel::UcxOptions ucx;
  if (!transports.empty()) ucx.transports = transports;
  auto world = parallel::UcxWorld::create(topology, world_rank, epoch, ucx);
  if (!world.ok()) return world.status();
  out->world_ = *std::move(world);
  return out;
}

absl::StatusOr<parallel::MachineProfile> EpochRank::meet(
    std::span<const std::string> addresses, const parallel::LlamaConfig& config,
    std::shared_ptr<const parallel::LlamaWeights<kernels::CpuQueue>> weights,
    const parallel::RankOptions& options) {
  if (auto status = world_->connect(addresses); !status.ok()) return status;
  auto rank = parallel::Rank::create(
      config, std::move(weights), std::make_unique<kernels::CpuQueue>(options.threads, options.isa),
      world_->groups(), topology_, world_rank_, epoch_, options);
  if (!rank.ok()) return rank.status();
  {
    const std::lock_guard lock(mutex_);
    rank_ = *std::move(rank);
  }
  return rank_->measure();
}

void EpochRank::abort(const std::string& why) {
  world_->abort(why);
}

parallel::Rank::Breadcrumb EpochRank::breadcrumb() const {
  const std::lock_guard lock(mutex_);
  return rank_ ? rank_->breadcrumb() : parallel::Rank::Breadcrumb{};
}

}  // namespace annulus::server
