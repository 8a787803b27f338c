// SPDX-License-Identifier: Apache-2.0
// The front end's end of the control plane: a gRPC server to which the workers attach, and the
// RankLink through which the engine reaches them. EpochCoordinator decides; this class carries its
// messages, keeps its clock and guards it with one mutex. Owned by the engine. Threads: gRPC's, a
// ticking thread and the engine's; the sink is called with the mutex held, because events must
// arrive in order, and therefore must not call back. Plans leave from the engine's thread without
// waiting for anybody.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/rank_link.h"
#include "server/rpc/coordinator.h"

namespace annulus::server {

struct ControlOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any
  int64_t max_message_bytes = int64_t{256} << 20;
  EpochPlan epoch;
  // Told, from the ticking thread, of workers that are lost though their process may live.
  std::function<void(int64_t pid)> on_stuck;
  // Called once, with the service's mutex held, where the epoch's plan is to examine the ranks.
  std::function<void(Examined)> on_examined;
  // The same, of every step whose ranks have all answered, where the epoch's plan is to trace them;
  // must not block.
  std::function<void(TracedStep)> on_traced;
};

class ControlService final : public RankLink {
 public:
  // Listens at once; epochs begin after start(). Unavailable where the port is taken.
  static absl::StatusOr<std::unique_ptr<ControlService>> create(ControlOptions options);
  ~ControlService() override;  // tells the workers to end, waits a moment

  void start(std::function<void(LinkEvent)> sink) override;
  void send(const parallel::StepPlan& plan, const parallel::ShardState& before,
            double expected_us) override;

  int port() const;
  EpochCoordinator::Status status() const;

 private:
  struct Impl;
  explicit ControlService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::server
