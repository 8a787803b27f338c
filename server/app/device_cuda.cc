// SPDX-License-Identifier: Apache-2.0
#include "server/app/device.h"

#if ANNULUS_WITH_CUDA
#include "absl/strings/str_cat.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cudnn_api.h"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/queue.h"
#include "parallel/comm_nccl.h"
#include "server/app/device_on.h"

namespace annulus::server {
namespace {

absl::StatusOr<std::optional<DeviceRoom>> room_of(const kernels::CudaDevice& device) {
  const auto free = kernels::free_cuda_bytes(device);
  if (!free.ok()) return free.status();
  return DeviceRoom{.device = kernels::named(device), .free_bytes = *free};
}

struct Gpu {
  using Queue = kernels::CudaQueue;
  using World = parallel::NcclWorld;
  kernels::CudaDevice device;
  const kernels::CublasLtApi* cublas = nullptr;

  std::string name() const { return device.name; }
  std::string fault() const { return kernels::cuda_fault(); }
  absl::StatusOr<std::optional<DeviceRoom>> room() const { return room_of(device); }
  absl::Status ready_for(const EpochWish& wish) const {
    if (wish.topology.world() > 1) {
      if (const auto nccl = parallel::load_nccl(); !nccl.ok()) return nccl.status();
    }
    return wish.cudnn_attention ? check_cudnn() : absl::OkStatus();
  }
  // cudnn_attention: ready_for() has found it.
  std::unique_ptr<Queue> queue(bool cudnn_attention) const {
    auto out = std::make_unique<Queue>(device.index);
    out->use(*cublas);
    if (cudnn_attention) out->use(**kernels::load_cudnn());
    return out;
  }
  std::unique_ptr<Queue> loader() const { return std::make_unique<Queue>(device.index); }
  absl::StatusOr<std::unique_ptr<World>> world(parallel::Topology topology, int32_t world_rank,
                                               int64_t epoch) const {
    static constexpr parallel::NcclApi kNone = {};
    kernels::use_cuda_device(device.index);
    if (topology.world() == 1) return World::create(kNone, topology, world_rank, epoch);
    const auto nccl = parallel::load_nccl();
    if (!nccl.ok()) return nccl.status();
    return World::create(**nccl, topology, world_rank, epoch);
  }
  // Which of NVLink, PCIe and the network NCCL took, it tells in its own log (NCCL_DEBUG=INFO).
  static std::string transports(World&, int32_t) { return "NCCL"; }
  static std::map<std::string, std::string> versions() {
    std::map<std::string, std::string> out;
    int driver = 0, version = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess) out[fact::kDriver] = std::to_string(driver);
    const auto nccl = parallel::load_nccl();
    if (nccl.ok() && (*nccl)->get_version(&version) == 0)
      out[fact::kNccl] = std::to_string(version);
    return out;
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> make_cuda_device(int32_t gpu) {
  Gpu out;
  auto found = kernels::find_cuda_device(gpu);
  if (!found.ok()) return found.status();
  const auto cublas = kernels::load_cublaslt();
  if (!cublas.ok()) return cublas.status();
  out.device = *std::move(found);
  out.cublas = *cublas;
  return std::make_unique<DeviceOn<Gpu>>(std::move(out));
}

absl::Status check_cudnn() {
  const auto cudnn = kernels::load_cudnn();
  if (cudnn.ok()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("--gpu-attention cudnn: ", cudnn.status().message()));
}

int32_t cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

absl::StatusOr<std::vector<DeviceRoom>> room_of_gpus(int32_t count) {
  std::vector<DeviceRoom> out;
  for (int32_t gpu = 0; gpu < count; ++gpu) {
    const auto device = kernels::find_cuda_device(gpu);
    if (!device.ok()) return device.status();
    const auto room = room_of(*device);
    cudaDeviceReset();  // the context: half a gigabyte
    if (!room.ok()) return room.status();
    out.push_back(**room);
  }
  return out;
}

}  // namespace annulus::server

#else

namespace annulus::server {

absl::Status check_cudnn() {
  return absl::FailedPreconditionError(
      "this build has no GPU code: run deploy/install --cuda, then deploy/build "
      "-DANNULUS_CUDA=ON; --device cpu needs neither");
}
absl::StatusOr<std::unique_ptr<Device>> make_cuda_device(int32_t) {
  return check_cudnn();
}
int32_t cuda_device_count() {
  return 0;
}
absl::StatusOr<std::vector<DeviceRoom>> room_of_gpus(int32_t) {
  return check_cudnn();
}

}  // namespace annulus::server
#endif
