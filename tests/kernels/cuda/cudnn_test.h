// SPDX-License-Identifier: Apache-2.0
// A test on a GPU with a cuDNN.
#pragma once

#include <gtest/gtest.h>

#include "tests/kernels/cuda/cudnn_of_machine.h"
#include "tests/kernels/cuda/device_array.h"

namespace annulus::kernels {

// Skipped where there is none.
class CudnnTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const auto api = cudnn_of_machine();
    if (!api.ok()) GTEST_SKIP() << api.status();
    api_ = *api;
  }

  const CudnnApi* api_ = nullptr;
};

}  // namespace annulus::kernels
