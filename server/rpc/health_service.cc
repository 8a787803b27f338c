// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/health_service.h"

#include <optional>
#include <string>
#include <utility>

#include "server/rpc/status_map.h"
#include "server/rpc/wire.h"

namespace annulus::server {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

namespace {

constexpr const char* kLive = "live";

bool known(const std::string& service) {
  return service.empty() || service == "annulus.v1.Inference";
}

}  // namespace

// Holds at most one unsent state. Owned by the service's set until gRPC is done with it.
class HealthService::Watcher final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                                     public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(HealthService& service, bool known) : service_(service), known_(known) {}

  bool known() const { return known_; }

  void tell(Status status) {
    {
      const std::lock_guard lock(mutex_);
      if (ended_ || status == sent_) return;
      next_ = status;
      if (std::exchange(writing_, true)) return;
    }
    write_next();
  }

  void end(const absl::Status& why = absl::UnavailableError("the server is ending")) {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(ended_, true)) return;
      why_ = why;
      if (std::exchange(writing_, true)) return;
    }
    write_next();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    write_next();
  }
  void OnCancel() override { end(); }
  void OnDone() override {
    const auto self = shared_from_this();
    const std::lock_guard lock(service_.mutex_);
    service_.watchers_.erase(self);
  }

 private:
  void write_next() {  // writing_ is ours
    bool ended = false;
    {
      const std::lock_guard lock(mutex_);
      ended = ended_;
      if (!ended) {
        if (!next_ || next_ == sent_) {
          writing_ = false;
          return;
        }
        sent_ = std::exchange(next_, std::nullopt);
        HealthCheckResponse response;
        response.set_status(*sent_);
        message_ = serialise(response);
      }
    }
    if (ended) return Finish(to_grpc(why_));
    StartWrite(&message_);
  }

  HealthService& service_;
  const bool known_;
  grpc::ByteBuffer message_;
  std::mutex mutex_;
  absl::Status why_ = absl::UnavailableError("the client is gone");
  std::optional<Status> next_, sent_;
  bool writing_ = false, ended_ = false;
};

HealthService::~HealthService() = default;

void HealthService::set_serving(bool serving) {
  std::set<std::shared_ptr<Watcher>> watchers;
  Status status;
  {
    const std::lock_guard lock(mutex_);
    status_ = serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
    status = status_;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) {
    if (watcher->known()) watcher->tell(status);
  }
}

void HealthService::shutdown() {
  std::set<std::shared_ptr<Watcher>> watchers;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->end();
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* bytes,
                                               grpc::ByteBuffer* out) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto request = parse<HealthCheckRequest>(*bytes);
  if (!request.ok()) {
    reactor->Finish(to_grpc(request.status()));
    return reactor;
  }
  const bool asks_live = request->service() == kLive;
  if (!asks_live && !known(request->service())) {
    reactor->Finish(
        grpc::Status(grpc::StatusCode::NOT_FOUND,
                     "no such service here: ask for \"\", \"annulus.v1.Inference\" or \"live\""));
    return reactor;
  }
  HealthCheckResponse response;
  if (asks_live) {
    response.set_status(live_() ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
  } else {
    const std::lock_guard lock(mutex_);
    response.set_status(status_);
  }
  *out = serialise(response);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* HealthService::Watch(grpc::CallbackServerContext*,
                                                                 const grpc::ByteBuffer* bytes) {
  const auto request = parse<HealthCheckRequest>(*bytes);
  auto watcher = std::make_shared<Watcher>(*this, request.ok() && known(request->service()));
  Status status = HealthCheckResponse::SERVICE_UNKNOWN;
  bool stopping = false;
  {
    const std::lock_guard lock(mutex_);
    watchers_.insert(watcher);
    if (watcher->known()) status = status_;
    stopping = stopping_;
  }
  if (!request.ok()) {
    watcher->end(request.status());
  } else if (stopping) {
    watcher->end();
  } else if (request->service() == kLive) {
    watcher->end(absl::UnimplementedError("\"live\" is not watched: Check it"));
  } else {
    watcher->tell(status);
  }
  return watcher.get();
}

}  // namespace annulus::server
