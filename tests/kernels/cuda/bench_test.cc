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
  const std::vector<GpuRow> rows =
      measure_gpu(queue(), {.repeats = 1, .scale = 1024, .longest = 2048});
  ASSERT_EQ(rows.size(), 38u);
  for (const GpuRow& row : rows) {
    EXPECT_TRUE(std::isfinite(row.rate) && row.rate > 0 && row.ms > 0) << row.what;
    EXPECT_EQ(row.limit[0] != '\0', row.of_limit > 0) << row.what;
  }
  const auto json = nlohmann::json::parse(json_of(rows));
  ASSERT_EQ(json.size(), rows.size());
  EXPECT_EQ(json[0].at("what"), rows[0].what);
  const std::string table = table_of(rows);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 38);
}

// cuDNN's rows: its own of each of ten problems, and where rows are many those of its blocks.
TEST_F(GpuBench, CudnnIsMeasuredBeside) {
  const std::vector<GpuRow> rows = measure_gpu(
      queue(), {.repeats = 1, .scale = 1024, .longest = 2048, .cudnn = &testing::scripted_cudnn()});
  std::map<std::string, int> seen;
  for (const GpuRow& row : rows) ++seen[row.what];
  EXPECT_EQ(seen["  the same by cuDNN"], 10);
  for (const GpuRow& row : rows) {
    const bool ours = row.what.starts_with("attention, ");
    EXPECT_EQ(!row.gate.empty(), ours) << row.what;
  }
  EXPECT_GE(seen["  the same by cuDNN's blocks, as --gpu-attention cudnn has it"], 1);
}

TEST(GpuBenchGates, AreReachedFromTheirBoundsOn) {
  EXPECT_EQ(attention_gate(1.0), "goal 1.0x reached");
  EXPECT_EQ(attention_gate(0.99), "gate 0.85x reached");
  EXPECT_EQ(attention_gate(0.6), "gate 0.6x reached");
  EXPECT_EQ(attention_gate(0.59), "below the gate of 0.6x");
  EXPECT_EQ(decode_gate(0.8), "80 % of copy, goal 80 %: reached");
  EXPECT_EQ(decode_gate(0.79), "79 % of copy, goal 80 %: missed");
}

}  // namespace
}  // namespace annulus::bench
