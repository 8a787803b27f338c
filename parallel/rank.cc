// SPDX-License-Identifier: Apache-2.0
#include "parallel/rank.h"

namespace annulus::parallel {

AttentionShape attention_shape(const LlamaConfig& config, const Topology& topology,
                               kernels::Precision precision) {
  return {config.heads / topology.tp, config.kv_heads / topology.tp, config.head_dim, config.layers,
          precision == kernels::Precision::kF32 ? kernels::DType::kF32 : kernels::DType::kBF16};
}

}  // namespace annulus::parallel
