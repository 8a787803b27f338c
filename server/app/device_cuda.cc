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

struct Gpu {
  using Queue = kernels::CudaQueue;
  using World = parallel::NcclWorld;
  kernels::CudaDevice device;
  const kernels::CublasLtApi* cublas = nullptr;
  const kernels::CudnnApi* cudnn = nullptr;  // null: attention by our kernels

  std::string name() const {
    if (cudnn == nullptr) return device.name;
    return absl::StrCat(device.name, ", attention by cuDNN ", cudnn->version());
  }
  std::string fault() const { return kernels::cuda_fault(); }
  absl::Status ready_for(parallel::Topology topology) const {
    return topology.world() == 1 ? absl::OkStatus() : parallel::load_nccl().status();
  }
  std::unique_ptr<Queue> queue() const {
    auto out = std::make_unique<Queue>(device.index);
    out->use(*cublas);
    if (cudnn != nullptr) out->use(*cudnn);
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

absl::StatusOr<std::unique_ptr<Device>> make_cuda_device(int32_t gpu, bool cudnn_attention) {
  Gpu out;
  if (cudnn_attention) {
    const auto cudnn = kernels::load_cudnn();
    if (!cudnn.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("--gpu-attention cudnn: ", cudnn.status().message()));
    }
    out.cudnn = *cudnn;
  }
  auto found = kernels::find_cuda_device(gpu);
  if (!found.ok()) return found.status();
  const auto cublas = kernels::load_cublaslt();
  if (!cublas.ok()) return cublas.status();
  out.device = *std::move(found);
  out.cublas = *cublas;
  return std::make_unique<DeviceOn<Gpu>>(std::move(out));
}

int32_t cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace annulus::server

#else

namespace annulus::server {

absl::StatusOr<std::unique_ptr<Device>> make_cuda_device(int32_t, bool) {
  return absl::FailedPreconditionError(
      "this build has no GPU code: run deploy/install --cuda, then deploy/build "
      "-DANNULUS_CUDA=ON; --device cpu needs neither");
}
int32_t cuda_device_count() {
  return 0;
}

}  // namespace annulus::server
#endif
