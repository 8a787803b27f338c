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

TEST(CublasLibrary, AMissingOneIsNamed) {
  setenv("ANNULUS_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
  const absl::Status status = load_cublaslt().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("/nowhere/libcublasLt.so.13"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("install cuBLAS"), absl::string_view::npos) << status;
}

TEST(CudnnLibrary, AMissingOneIsNamed) {
  setenv("ANNULUS_CUDNN", "/nowhere/libcudnn.so.9", 1);
  const absl::Status status = load_cudnn().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("/nowhere/libcudnn.so.9"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("deploy/install --cudnn"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace annulus::kernels
