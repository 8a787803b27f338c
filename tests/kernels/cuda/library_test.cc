// SPDX-License-Identifier: Apache-2.0
// What is said where one of NVIDIA's libraries is missing or too old, or the GPU is another one.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cudnn_api.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {
namespace {

void expect_missing(const absl::Status& status, absl::string_view path, absl::string_view remedy) {
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find(path), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find(remedy), absl::string_view::npos) << status;
}

TEST(CublasLibrary, AMissingOneIsNamed) {
  setenv("ANNULUS_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
  expect_missing(load_cublaslt().status(), "/nowhere/libcublasLt.so.13", "install cuBLAS");
}

TEST(CublasLibrary, OneThatIsTooOldSaysBothVersions) {
  EXPECT_TRUE(check_cublaslt_version(130000).ok());
  EXPECT_TRUE(check_cublaslt_version(130100).ok());
  EXPECT_EQ(check_cublaslt_version(120805).message(),
            "the cuBLASLt found has version 12.8.5, but 13.0.0 or newer is needed; install cuBLAS "
            "13 (NVIDIA's package libcublas-13-0, or nvidia-cublas from PyPI) or name the library "
            "in ANNULUS_CUBLASLT");
  // A library is loaded once: by a process of its own.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        setenv("ANNULUS_CUBLASLT", OLD_LIBRARIES, 1);
        std::cerr << load_cublaslt().status();
        std::exit(2);
      },
      ::testing::ExitedWithCode(2), "cuBLASLt found has version 12.9.1, but 13.0.0");
}

TEST(CudaDevice, OfAnotherKindIsNamed) {
  EXPECT_TRUE(find_cuda_device(0).ok());
  const cudaDeviceProp a100 = {.name = "NVIDIA A100-SXM4-80GB", .major = 8};
  const cudaDeviceProp own = std::exchange(cuda_emulation::device, a100);
  const absl::Status status = find_cuda_device(0).status();
  cuda_emulation::device = own;
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "GPU 0 (NVIDIA A100-SXM4-80GB) has compute capability 8.0; the kernels are built for "
            "9.0 (H100, H200)");
  EXPECT_EQ(find_cuda_device(1).status().message(), "there is no GPU 1; this machine has 1");
}

TEST(CudnnLibrary, AMissingOneIsNamed) {
  setenv("ANNULUS_CUDNN", "/nowhere/libcudnn.so.9", 1);
  expect_missing(load_cudnn().status(), "/nowhere/libcudnn.so.9", "deploy/install --cudnn");
}

}  // namespace
}  // namespace annulus::kernels
