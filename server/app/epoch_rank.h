// SPDX-License-Identifier: Apache-2.0
// What a worker holds in one epoch: its UCX world and its Rank. Made by the compute thread in two
// steps, because the addresses of all worlds travel in between. abort() and breadcrumb() from any
// thread, at any time; everything else from the compute thread. Errors: Status for what an operator
// can mend, DeviceError from meet() and rank().apply().
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/comm_ucx.h"
#include "parallel/model/config.h"
#include "parallel/model/weights.h"
#include "parallel/rank.h"

namespace annulus::server {

class EpochRank {
 public:
  static absl::StatusOr<std::shared_ptr<EpochRank>> create(int64_t epoch,
                                                           parallel::Topology topology,
                                                           int32_t world_rank,
                                                           const std::string& transports);

  int64_t epoch() const { return epoch_; }
  std::string address() const { return world_->address(); }

  // Connects to the others and measures the machine together with them.
  absl::StatusOr<parallel::MachineProfile> meet(
      std::span<const std::string> addresses, const parallel::LlamaConfig& config,
      std::shared_ptr<const parallel::LlamaWeights<kernels::CpuQueue>> weights,
      const parallel::RankOptions& options);
  bool met() const { return rank_ != nullptr; }
  parallel::Rank& rank() { return *rank_; }

  void abort(const std::string& why);
  parallel::Rank::Breadcrumb breadcrumb() const;

 private:
  EpochRank(int64_t epoch, parallel::Topology topology, int32_t world_rank)
      : epoch_(epoch), topology_(topology), world_rank_(world_rank) {}

  const int64_t epoch_;
  const parallel::Topology topology_;
  const int32_t world_rank_;
  mutable std::mutex mutex_;  // of the pointer below, not of what it points to
  std::unique_ptr<parallel::Rank>
      rank_;  // outlives the world, which may still write into its memory
  std::unique_ptr<parallel::UcxWorld> world_;
};

}  // namespace annulus::server
