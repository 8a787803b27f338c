// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_ucx.h"
#include "server/app/device_on.h"

namespace annulus::server {
namespace {

struct Cpu {
  using Queue = kernels::CpuQueue;
  using World = parallel::UcxWorld;
  int32_t threads = 1;
  kernels::CpuIsa isa = kernels::CpuIsa::kPortable;
  std::string transports;

  std::string name() const { return kernels::name(isa); }
  std::string fault() const { return ""; }
  absl::Status ready_for(parallel::Topology) const { return absl::OkStatus(); }
  std::unique_ptr<Queue> queue() const { return std::make_unique<Queue>(threads, isa); }
  std::unique_ptr<Queue> loader() const { return std::make_unique<Queue>(1); }
  absl::StatusOr<std::unique_ptr<World>> world(parallel::Topology topology, int32_t world_rank,
                                               int64_t epoch) const {
    parallel::UcxOptions options;
    if (!transports.empty()) options.transports = transports;
    return World::create(topology, world_rank, epoch, options);
  }
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int32_t threads, kernels::CpuIsa isa,
                                        const std::string& transports) {
  return std::make_unique<DeviceOn<Cpu>>(Cpu{threads, isa, transports});
}

}  // namespace annulus::server
