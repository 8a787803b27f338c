// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu_versions.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <string>

#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cudnn_api.h"
#include "parallel/nccl_api.h"

namespace annulus::bench {
namespace {

void print(const char* what, int64_t major, int64_t minor, int64_t patch) {
  std::printf("%s %lld.%lld.%lld\n", what, static_cast<long long>(major),
              static_cast<long long>(minor), static_cast<long long>(patch));
}

void print_missing(const char* what, const absl::Status& status) {
  std::printf("%s missing: %s\n", what, std::string(status.message()).c_str());
}

}  // namespace

void print_gpu_versions() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    std::printf("driver missing: there is no libcuda.so.1; install NVIDIA's driver\n");
  } else {
    print("driver", driver / 1000, driver % 1000 / 10, 0);
  }
  print("runtime", runtime / 1000, runtime % 1000 / 10, 0);
  if (const auto cublas = kernels::load_cublaslt(); !cublas.ok()) {
    print_missing("cublaslt", cublas.status());
  } else {
    const auto version = static_cast<int64_t>((*cublas)->version());
    print("cublaslt", version / 10000, version / 100 % 100, version % 100);
  }
  int nccl_version = 0;
  if (const auto nccl = parallel::load_nccl(); !nccl.ok()) {
    print_missing("nccl", nccl.status());
  } else if ((*nccl)->get_version(&nccl_version) == parallel::kNcclSuccess) {
    print("nccl", nccl_version / 10000, nccl_version / 100 % 100, nccl_version % 100);
  }
  if (const auto cudnn = kernels::load_cudnn(); !cudnn.ok()) {
    print_missing("cudnn", cudnn.status());
  } else {
    const auto version = static_cast<int64_t>((*cudnn)->version());
    print("cudnn", version / 10000, version / 100 % 100, version % 100);
  }
}

}  // namespace annulus::bench
