// SPDX-License-Identifier: Apache-2.0
// One Generate call: parses and tokenises on the task pool, submits to the engine, and writes
// events as they come, at most one write in flight. The outbox between the engine and the reader is
// bounded; a reader too slow for it loses its request with RESOURCE_EXHAUSTED, so that the engine
// never waits. Cancellation and deadlines of the client cancel the request. Owns itself until gRPC
// is done with it; the engine's sink holds a share.
#pragma once

#include <grpcpp/impl/codegen/server_callback.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "server/rpc/service_core.h"

namespace annulus::server {

class GenerateReactor : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                        public std::enable_shared_from_this<GenerateReactor> {
 public:
  using WallClock = std::chrono::system_clock;

  // `request` lives as long as the call.
  static GenerateReactor* start(ServiceCore& core, WallClock::time_point deadline,
                                const grpc::ByteBuffer* request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateReactor(ServiceCore& core, WallClock::time_point deadline)
      : core_(core), deadline_(deadline) {}
  void admit(const grpc::ByteBuffer& request);
  void push(Event event);                // from the engine
  void close_with(absl::Status status);  // no more events; what waits is still written
  void client_left();
  void cancel_request();
  bool is_cancelled();
  void write_next();  // by whoever set writing_

  ServiceCore& core_;
  const WallClock::time_point began_ = WallClock::now(), deadline_;
  std::shared_ptr<GenerateReactor> self_;  // until OnDone
  ResponseContext context_;                // set before the first event
  grpc::ByteBuffer message_;               // of the write in flight

  std::mutex mutex_;
  std::deque<Event> outbox_;
  int64_t outbox_bytes_ = 0;
  bool writing_ = false;  // a write or the finish is in flight
  bool closed_ = false;   // final_ is decided
  absl::Status final_;
  int64_t id_ = -1;  // of the engine, once submitted
  bool cancelled_ = false;
  std::optional<absl::StatusCode> left_;  // what the client saw when it did not wait for the end
};

}  // namespace annulus::server
