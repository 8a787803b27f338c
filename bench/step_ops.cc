// SPDX-License-Identifier: Apache-2.0
#include "bench/step_ops.h"

#include <algorithm>

namespace annulus::bench {

using kernels::Phase;

double returned_bytes(const parallel::PolicyInput& policy, const StepWork& work) {
  if (work.variant == parallel::Variant::kPassKv) return 0;
  const auto rows = static_cast<double>(work.load.n_new * work.sequences);
  return rows / policy.cp * (policy.cp - 1) *
         static_cast<double>(policy.shape.partial_row_bytes() * policy.shape.layers);
}

StepDemands step_demands(const parallel::LlamaConfig& config, const parallel::Topology& topology,
                         const parallel::PolicyInput& policy, const LinearBytes& linear,
                         const StepWork& work) {
  const double tp = topology.tp, cp = topology.cp, layers = config.layers;
  const double rows = static_cast<double>(work.load.n_new * work.sequences) / cp;
  const double dim = config.dim, ffn = config.ffn / tp, vocab = config.vocab / tp;
  const double q = config.heads / tp * config.head_dim, kv = config.kv_heads / tp * config.head_dim;
  const auto sequences = static_cast<double>(work.sequences);

  StepDemands demands;
  const auto of = [&](Phase phase) -> Demand& { return demands[static_cast<size_t>(phase)]; };
  const auto matmul = [&](Phase phase, double n, double k, int64_t weight_bytes) {
    of(phase) = {.flop = 2 * rows * n * k * layers, .bytes = static_cast<double>(weight_bytes)};
  };
  matmul(Phase::kQkv, q + 2 * kv, dim, linear.qkv);
  matmul(Phase::kOutput, dim, q, linear.o);
  matmul(Phase::kGateUp, 2 * ffn, dim, linear.gate_up);
  matmul(Phase::kDown, dim, ffn, linear.down);
  // Only ranks that hold a sequence's last position compute logits.
  of(Phase::kHead) = {.flop = 2 * sequences / cp * vocab * dim,
                      .bytes = static_cast<double>(linear.head) * std::min(sequences / cp, 1.0)};
  const Demand attention = attention_demand(policy, work.load);
  of(Phase::kAttention) = {.flop = attention.flop * sequences,
                           .bytes = attention.bytes * sequences};

  const auto moved = [&](Phase phase, double floats_of_a_row, double other_bytes = 0) {
    of(phase).bytes = (4 * floats_of_a_row + other_bytes) * rows * layers;
  };
  of(Phase::kEmbed).bytes = 4 * dim * rows;
  moved(Phase::kNorm, 2 * 2 * dim);
  moved(Phase::kRope, 2 * (q + kv));
  moved(Phase::kKvAppend, 2 * kv, static_cast<double>(policy.shape.kv_row_bytes()));
  moved(Phase::kSwiglu, 3 * ffn);
  moved(Phase::kAdd, 2 * 3 * dim);
  of(Phase::kMerge).bytes = 3 * returned_bytes(policy, work);
  return demands;
}

}  // namespace annulus::bench
