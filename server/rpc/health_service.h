// SPDX-License-Identifier: Apache-2.0
// grpc.health.v1.Health, served by ourselves so that reflection describes it; raw (wire.h), so that
// what does not parse is INVALID_ARGUMENT. Two services: "" and
// "annulus.v1.Inference", always in the same state. set_serving() from any thread; watchers are
// told of every change (only the latest state, if they read slowly). shutdown() ends all watches,
// so that the server can end.
#pragma once

#include <memory>
#include <mutex>
#include <set>

#include "grpc/health/v1/health.grpc.pb.h"

namespace annulus::server {

using RawHealth = grpc::health::v1::Health::WithRawCallbackMethod_Check<
    grpc::health::v1::Health::WithRawCallbackMethod_Watch<grpc::health::v1::Health::Service>>;

class HealthService final : public RawHealth {
 public:
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

  std::mutex mutex_;  // never held while a watcher's own is taken
  Status status_ = grpc::health::v1::HealthCheckResponse::NOT_SERVING;
  bool stopping_ = false;
  std::set<std::shared_ptr<Watcher>> watchers_;
};

}  // namespace annulus::server
