// SPDX-License-Identifier: Apache-2.0
// GET /metrics for Prometheus, in its text format (prometheus.io/docs/instrumenting/
// exposition_formats), by prometheus-cpp, whose CivetWeb speaks HTTP on 16 threads of its own and
// closes a connection that is silent for 2 s. A scrape looks at numbers that others count: it takes
// the mutexes of the engine and of the control plane for as long as copying takes, and waits for no
// rank. Labels are bounded by codes, variants and ranks. Counters begin at 0 with the process; the
// gauges of ranks are there while an epoch serves. Unavailable: the port is taken, or the address
// is not ours.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/engine.h"
#include "server/metrics.h"

namespace annulus::server {

// What never changes.
struct MetricsFacts {
  std::string version, model, precision;
  int64_t context = 0;
  parallel::Topology topology;
};

// What one scrape sees.
struct MetricsView {
  ClusterStatus cluster;
  EngineMetrics engine;
  std::array<int64_t, RequestCounts::kCodes> requests{};
  int64_t ranks_ready = 0;
  double engine_stalled_s = 0;
};

class MetricsServer {
 public:
  // host: an IPv4 address or a name of one; port 0: any free one. `look` is called by any thread
  // until this ends.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> start(const std::string& host, int port,
                                                              MetricsFacts facts,
                                                              std::function<MetricsView()> look);
  ~MetricsServer();

  int port() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus::server
