// SPDX-License-Identifier: Apache-2.0
// cuDNN on an emulated GPU: the functions of CudnnApi as its manual defines them. A plan is a graph
// that is interpreted, operation by operation, a row of scores at a time: in double precision, but
// a tensor between operations is rounded to its type. So it is the graph that is tested, not a
// second idea of it. What it does not know stops the test.
#pragma once

#include <atomic>

#include "kernels/cuda/cudnn_api.h"

namespace annulus::testing {

struct CudnnScript {
  // Engines for a graph, the first of which cannot be compiled; which one ran last.
  std::atomic<int> engines{1}, refused{0}, ran{-1};
  std::atomic<int> plans{0}, runs{0}, live{0};  // live: handles and descriptors not destroyed yet
};
CudnnScript& cudnn_script();

const kernels::CudnnApi& scripted_cudnn();

}  // namespace annulus::testing
