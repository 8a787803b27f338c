// SPDX-License-Identifier: Apache-2.0
// grpc.health.v1.Health, served by ourselves so that reflection describes it; raw (wire.h), so that
// what does not parse is INVALID_ARGUMENT. "" and "annulus.v1.Inference" are always in the same
// state: can requests be served? set_serving() from any thread; watchers are told of every change
// (only the latest state, if they read slowly). "live" asks something else, for whoever would
// restart this process: SERVING while live() says so, also where ranks are missing; to Check only.
// shutdown() ends all watches, so that the server can end.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "grpc/health/v1/health.grpc.pb.h"

namespace annulus::server {

using RawHealth = grpc::health::v1::Health::WithRawCallbackMethod_Check<
    grpc::health::v1::Health::WithRawCallbackMethod_Watch<grpc::health::v1::Health::Service>>;

class HealthService final : public RawHealth {
 public:
  // live: from any thread, at every Check of "live".
  explicit HealthService(std::function<bool()> live) : live_(std::move(live)) {}
  ~HealthService() override;

  void set_serving(bool serving);
  void shutdown();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Watch(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;

 private:
  class Watcher;
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  const std::function<bool()> live_;
  std::mutex mutex_;  // never held while a watcher's own is taken
  Status status_ = grpc::health::v1::HealthCheckResponse::NOT_SERVING;
  bool stopping_ = false;
  std::set<std::shared_ptr<Watcher>> watchers_;
};

}  // namespace annulus::server
