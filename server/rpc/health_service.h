// SPDX-License-Identifier: Apache-2.0
// grpc.health.v1.Health, served by ourselves so that reflection describes it. Two services: "" and
// "annulus.v1.Inference", always in the same state. set_serving() from any thread; watchers are
// told of every change (only the latest state, if they read slowly). shutdown() ends all watches,
// so that the server can end.
#pragma once

#include <memory>
#include <mutex>
#include <set>

#include "grpc/health/v1/health.grpc.pb.h"

namespace annulus::server {

class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  ~HealthService() override;

  void set_serving(bool serving);
  void shutdown();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  std::mutex mutex_;  // never held while a watcher's own is taken
  Status status_ = grpc::health::v1::HealthCheckResponse::NOT_SERVING;
  bool stopping_ = false;
  std::set<std::shared_ptr<Watcher>> watchers_;
};

}  // namespace annulus::server
