// SPDX-License-Identifier: Apache-2.0
// A worker's end of the control plane: one stream of messages both ways. One thread reads,
// blocking; any thread writes or cancels. What is written is sent in order by a thread of the
// client's own, so that a rank computes on meanwhile. Owned by the worker, one per attachment.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "annulus/v1/worker.pb.h"

namespace annulus::server {

class ControlClient {
 public:
  // Unavailable: nobody answers at `address` within `patience`.
  static absl::StatusOr<std::unique_ptr<ControlClient>> connect(const std::string& address,
                                                                int64_t max_message_bytes,
                                                                absl::Duration patience);
  ~ControlClient();  // cancels

  bool read(v1::FrontMessage* message);  // false: the stream is over
  // Waits only while kMostUnsent messages have not left. False: the stream is over.
  bool write(v1::WorkerMessage message);
  // For the thread that reads, which must not wait: at most one of them is unsent.
  void write_at_once(v1::WorkerMessage message);
  void say_goodbye();  // after what was written; no more writes: the front end ends the stream
  void cancel();

 private:
  static constexpr size_t kMostUnsent = 8;

  struct Impl;
  explicit ControlClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::server
