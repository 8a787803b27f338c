// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_ucx.h"
#include "server/app/device_on.h"

#include <cstdlib>
#include <map>
#include <optional>

namespace annulus::server {
namespace {

struct Cpu {
  using Queue = kernels::CpuQueue;
  using World = parallel::UcxWorld;
  int32_t threads = 1;
  kernels::CpuIsa isa = kernels::CpuIsa::kPortable;
  std::string transports_;

  std::string name() const { return kernels::name(isa); }
  std::string fault() const { return ""; }
  static absl::StatusOr<std::optional<DeviceRoom>> room() { return std::nullopt; }
  absl::Status ready_for(const EpochWish& wish) const {
    if (!wish.cudnn_attention) return absl::OkStatus();
    return absl::FailedPreconditionError(
        "the front end wants attention by cuDNN, and this worker computes on a CPU: start it with "
        "--device cuda, or the front end without --gpu-attention cudnn");
  }
  std::unique_ptr<Queue> queue(bool) const { return std::make_unique<Queue>(threads, isa); }
  std::unique_ptr<Queue> loader() const { return std::make_unique<Queue>(1); }
  absl::StatusOr<std::unique_ptr<World>> world(parallel::Topology topology, int32_t world_rank,
                                               int64_t epoch) const {
    parallel::UcxOptions options;
    if (!transports_.empty()) options.transports = transports_;
    return World::create(topology, world_rank, epoch, options);
  }
  std::string transports(World& world, int32_t peer) const { return world.transports(peer); }
  std::map<std::string, std::string> versions() const {
    std::map<std::string, std::string> out = {{fact::kUcx, parallel::ucx_version()}};
    const char* from_environment = std::getenv("UCX_TLS");
    const std::string forced = from_environment != nullptr ? from_environment : transports_;
    // A front end's own workers are on one host by design.
    if (!forced.empty() && forced != parallel::kLocalTransports) out[fact::kForced] = forced;
    return out;
  }
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int32_t threads, kernels::CpuIsa isa,
                                        const std::string& transports) {
  return std::make_unique<DeviceOn<Cpu>>(Cpu{threads, isa, transports});
}

}  // namespace annulus::server
