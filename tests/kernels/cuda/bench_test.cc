// SPDX-License-Identifier: Apache-2.0
// The GPU benchmark's program on the emulated GPU, in small: it runs to its end and its rows are
// whole. Its times are nobody's.
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/gpu.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/scripted_cudnn.h"

namespace annulus::bench {
namespace {

class GpuBench : public kernels::CudaTest {};

TEST_F(GpuBench, EveryRowIsMeasured) {
  const std::vector<GpuRow> rows = measure_gpu(queue(), {.repeats = 1, .scale = 1024});
  ASSERT_EQ(rows.size(), 28u);
  for (const GpuRow& row : rows) {
    EXPECT_TRUE(std::isfinite(row.rate) && row.rate > 0 && row.ms > 0) << row.what;
    EXPECT_EQ(row.limit[0] != '\0', row.of_limit > 0) << row.what;
  }
  const auto json = nlohmann::json::parse(json_of(rows));
  ASSERT_EQ(json.size(), rows.size());
  EXPECT_EQ(json[0].at("what"), rows[0].what);
  const std::string table = table_of(rows);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 28);
}

// cuDNN's rows: its own of each of eight problems, and where rows are many those of its blocks.
TEST_F(GpuBench, CudnnIsMeasuredBeside) {
  const std::vector<GpuRow> rows =
      measure_gpu(queue(), {.repeats = 1, .scale = 1024, .cudnn = &testing::scripted_cudnn()});
  std::map<std::string, int> seen;
  for (const GpuRow& row : rows) ++seen[row.what];
  EXPECT_EQ(seen["  the same by cuDNN"], 9);
  EXPECT_GE(seen["  the same by cuDNN's blocks, as --gpu-attention cudnn has it"], 1);
}

}  // namespace
}  // namespace annulus::bench
