// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu_versions.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <string>

#include "kernels/core/shared_library.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cudnn_api.h"
#include "parallel/nccl_api.h"

namespace annulus::bench {
namespace {

void print(const char* what, int64_t version) {
  std::printf("%s %s\n", what, kernels::dotted_version(version).c_str());
}

// CUDA's own count: 13010 is 13.1.
void print_cuda(const char* what, int version) {
  std::printf("%s %d.%d.0\n", what, version / 1000, version % 1000 / 10);
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
    print_cuda("driver", driver);
  }
  print_cuda("runtime", runtime);
  if (const auto cublas = kernels::load_cublaslt(); !cublas.ok()) {
    print_missing("cublaslt", cublas.status());
  } else {
    print("cublaslt", static_cast<int64_t>((*cublas)->version()));
  }
  int nccl_version = 0;
  if (const auto nccl = parallel::load_nccl(); !nccl.ok()) {
    print_missing("nccl", nccl.status());
  } else if ((*nccl)->get_version(&nccl_version) == parallel::kNcclSuccess) {
    print("nccl", nccl_version);
  }
  if (const auto cudnn = kernels::load_cudnn(); !cudnn.ok()) {
    print_missing("cudnn", cudnn.status());
  } else {
    print("cudnn", static_cast<int64_t>((*cudnn)->version()));
  }
}

}  // namespace annulus::bench
