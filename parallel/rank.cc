// SPDX-License-Identifier: Apache-2.0
#include "parallel/rank.h"

#include "kernels/core/check.h"

namespace annulus::parallel {

AttentionShape attention_shape(const LlamaConfig& config, const Topology& topology,
                               kernels::Precision precision) {
  return {config.heads / topology.tp, config.kv_heads / topology.tp, config.head_dim, config.layers,
          precision == kernels::Precision::kF32 ? kernels::DType::kF32 : kernels::DType::kBF16};
}

absl::StatusOr<StepResult> Rank::apply(const StepPlan& plan,
                                       std::chrono::steady_clock::time_point deadline) {
  ANNULUS_CHECK(begun() == 0, begun(), " steps are under way");
  if (absl::Status begun = begin(plan, deadline, {}); !begun.ok()) return begun;
  return end();
}

}  // namespace annulus::parallel
