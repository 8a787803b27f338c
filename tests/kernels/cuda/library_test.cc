// SPDX-License-Identifier: Apache-2.0
// What is said where one of NVIDIA's libraries is missing.
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cudnn_api.h"

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

TEST(CudnnLibrary, AMissingOneIsNamed) {
  setenv("ANNULUS_CUDNN", "/nowhere/libcudnn.so.9", 1);
  expect_missing(load_cudnn().status(), "/nowhere/libcudnn.so.9", "deploy/install --cudnn");
}

}  // namespace
}  // namespace annulus::kernels
