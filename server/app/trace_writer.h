// SPDX-License-Identifier: Apache-2.0
// TraceWriter: `serve --trace`: writes the steps that the control plane hands over, on a thread of
// its own, for they come with its mutex held. Where the disk cannot keep up, steps are left out of
// the file and counted. Destroyed when no more come; what waits is written then, for some seconds.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "parallel/topology.h"
#include "server/trace_file.h"

namespace annulus::server {

class TraceWriter {
 public:
  // InvalidArgument: the file cannot be written.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> create(const std::string& path,
                                                             const parallel::Topology& topology);
  ~TraceWriter();

  void add(TracedStep step);  // any thread

 private:
  explicit TraceWriter(std::unique_ptr<TraceFile> file);
  void write_loop();

  std::unique_ptr<TraceFile> file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<TracedStep> waiting_;
  size_t waiting_bytes_ = 0;
  int64_t left_out_ = 0;
  bool ending_ = false;
  std::chrono::steady_clock::time_point end_;
  std::thread writer_;
};

}  // namespace annulus::server
