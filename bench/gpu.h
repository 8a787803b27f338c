// SPDX-License-Identifier: Apache-2.0
// What a GPU reaches with our ops: memory, linear layers and attention, each beside the limit that
// the same run measured, attention beside cuDNN's. Needs nothing but the CUDA libraries and driver.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/cudnn_api.h"
#include "kernels/cuda/queue.h"

namespace annulus::bench {

struct GpuRow {
  std::string what;
  double ms = 0;           // median of the repeats
  double rate = 0;         // TFLOP/s or GB/s
  const char* unit = "";   // of the rate
  double of_limit = 0;     // rate / the limit below
  const char* limit = "";  // "copy", "gemm", "cuDNN"; empty: this row is a limit
  std::string gate;        // which of the project's gates it reaches; empty: it has none
};

struct GpuBenchOptions {
  int repeats = 7;
  int32_t scale = 1;         // sizes are divided by it: for a first look, and for the emulated GPU
  int64_t longest = 131072;  // tokens of attention's sweep
  const kernels::CudnnApi* cudnn = nullptr;  // attention is set beside it; null: beside the others
};

// What a row of attention says of its gates: 0.6, 0.85 and 1.0 times as fast as cuDNN; decode: 80 %
// of what copying reaches.
std::string attention_gate(double times_cudnn);
std::string decode_gate(double of_copy);

// Rows in the order they were measured; the queue's matmul uses what queue.use() gave it.
std::vector<GpuRow> measure_gpu(kernels::CudaQueue& queue, const GpuBenchOptions& options);

// TFLOP/s of a large product in bf16: what the rows above are set beside.
double gemm_limit_tflop_s(kernels::CudaQueue& queue, const GpuBenchOptions& options = {});

std::string table_of(const std::vector<GpuRow>& rows);
std::string json_of(const std::vector<GpuRow>& rows);  // an array of objects

}  // namespace annulus::bench
