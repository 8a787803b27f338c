// SPDX-License-Identifier: Apache-2.0
// Which attention cuDNN has engines for on an H100 that is described to it, without a GPU: the real
// library, where there is one, takes the graphs that Sdpa builds.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/sdpa.h"

namespace annulus::kernels {
namespace {

// What cuDNN reads of a device (NVIDIA's H100 SXM data sheet; limits of compute capability 9.0).
constexpr const char* kH100 = R"({
  "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000, "deviceName": "NVIDIA H100 80GB HBM3",
  "multiProcessorCount": 132, "warpSize": 32, "maxGridSize": [2147483647, 65535, 65535],
  "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
  "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "maxCtasPerSM": 32,
  "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
  "reservedSharedMemoryPerBlock": 1024, "l2CacheSize": 52428800, "totalGlobalMem": 85000000000,
  "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "pciDeviceId": 0, "isTccDriver": 0,
  "supportCoopLaunch": 1})";

class CudnnSupport : public testing::Test {
 protected:
  void SetUp() override {
    // By its name cuDNN finds what is loaded already.
    ASSERT_NE(dlopen(REFUSING_DRIVER, RTLD_NOW | RTLD_GLOBAL), nullptr) << dlerror();
    const auto api = load_cudnn();
    // tests/run --full installs it, and asks that it is found.
    const char* const needed = std::getenv("ANNULUS_NEED_CUDNN");
    if (!api.ok() && needed != nullptr && *needed != '\0') FAIL() << api.status();
    if (!api.ok()) GTEST_SKIP() << api.status();
    api_ = *api;
  }
  int64_t engines(const SdpaShape& shape) {
    return sdpa_support(*api_, shape, kH100, false).engines;
  }
  const CudnnApi* api_ = nullptr;
};

TEST_F(CudnnSupport, AttentionThatTheEngineKnows) {
  for (const DType output : {DType::kBF16, DType::kF32}) {
    for (const int32_t head_dim : {64, 128}) {
      for (const auto& heads : {std::pair{16, 1}, std::pair{32, 8}, std::pair{9, 3}}) {
        SCOPED_TRACE(std::to_string(heads.first) + " heads of " + std::to_string(head_dim));
        const auto shape = [&](int64_t queries, int64_t keys, SdpaMask mask) {
          return SdpaShape{heads.first, heads.second, head_dim, queries, keys, mask, output};
        };
        EXPECT_GT(engines(shape(8192, 8192, SdpaMask::kCausal)), 0);
        EXPECT_GT(engines(shape(1001, 4099, SdpaMask::kCausal)), 0) << "behind a cached prefix";
        EXPECT_GT(engines(shape(2048, 4096, SdpaMask::kNone)), 0);
        EXPECT_GT(engines(shape(1, 131072, SdpaMask::kNone)), 0) << "decode";
      }
    }
  }
  EXPECT_GT(engines({16, 1, 128, 65536, 1048576}), 0);
}

// Every block that CudnnAttention asks for.
TEST_F(CudnnSupport, BlocksOfTheEngine) {
  for (const int32_t head_dim : {64, 128})
    for (const auto& heads : {std::pair{16, 1}, std::pair{32, 8}, std::pair{9, 3}, std::pair{8, 8}})
      for (const int32_t queries : {kCudnnQueries.small, kCudnnQueries.large})
        for (const int32_t keys : {kCudnnKeys.small, kCudnnKeys.large}) {
          EXPECT_GT(engines({heads.first, heads.second, head_dim, queries, keys,
                             SdpaMask::kFirstRows, DType::kF32}),
                    0)
              << heads.first << "/" << heads.second << " heads of " << head_dim << ", " << queries
              << " by " << keys;
        }
}

TEST_F(CudnnSupport, AttentionThatItDoesNot) {
  EXPECT_EQ(engines({16, 1, 100, 1024, 1024}), 0);
  try {
    engines({16, 3, 128, 1024, 1024});
    ADD_FAILURE() << "16 heads over 3";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("cuDNN, an operation: status 2000"), std::string::npos)
        << error.what();
  }
}

TEST_F(CudnnSupport, AKernelIsCompiledForIt) {
  EXPECT_TRUE(sdpa_support(*api_, {16, 1, 128, 1000, 1003}, kH100, true).compiled);
  EXPECT_TRUE(sdpa_support(*api_,
                           {16, 1, 128, kCudnnQueries.large, kCudnnKeys.large, SdpaMask::kFirstRows,
                            DType::kF32},
                           kH100, true)
                  .compiled);
}

}  // namespace
}  // namespace annulus::kernels
