// SPDX-License-Identifier: Apache-2.0
// The GPU benchmark's program on the emulated GPU, in small: it runs to its end and its rows are
// whole. Its times are nobody's.
#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/gpu.h"
#include "tests/kernels/cuda/device_array.h"

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

}  // namespace
}  // namespace annulus::bench
