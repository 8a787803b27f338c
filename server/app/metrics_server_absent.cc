// SPDX-License-Identifier: Apache-2.0
// MetricsServer in a program that is linked whole (ANNULUS_STATIC): there are no archives of
// prometheus-cpp and CivetWeb to link.
#include "server/app/metrics_server.h"

namespace annulus::server {

struct MetricsServer::Impl {};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::start(const std::string&, int,
                                                                    MetricsFacts,
                                                                    std::function<MetricsView()>) {
  return absl::FailedPreconditionError(
      "--metrics: this program was built with ANNULUS_STATIC, which leaves metrics out; leave the "
      "option away, or serve with a build without it (workers may have this one)");
}

int MetricsServer::port() const {
  return 0;
}

}  // namespace annulus::server
