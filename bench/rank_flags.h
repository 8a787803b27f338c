// SPDX-License-Identifier: Apache-2.0
// Flags that every benchmark over a RankGroup shares, and small plan helpers.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "bench/rank_group.h"
#include "bench/statistics.h"

namespace annulus::bench {

struct RankFlags {
  std::string precision = "default", cpu_isa = "auto";
  RankGroupOptions options;

  void add_to(CLI::App& app);
  void add_trace_to(CLI::App& app);  // for those that start one group
  // After parsing; errors name the flag.
  absl::Status apply();
};

parallel::Op admit_op(int32_t slot);
parallel::Op slot_op(parallel::Op::Kind kind, int32_t slot, int64_t length = 0);

// Largest rank's microseconds in the attention of the step's only group, computing and waiting.
double attention_us(const std::vector<parallel::StepResult>& results);

inline constexpr parallel::Variant kAllVariants[] = {
    parallel::Variant::kPassKv, parallel::Variant::kPassQ, parallel::Variant::kGatherQ};

}  // namespace annulus::bench
