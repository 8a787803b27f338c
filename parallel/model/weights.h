// SPDX-License-Identifier: Apache-2.0
// The weights of one tensor-parallel rank. slice_layer() and slice_head() are pure views into the
// checkpoint: q, k, v, gate, up and head are cut by output rows (whole heads, FFN columns,
// vocabulary), o and down by input columns, so that the ranks' partial sums are joined by one
// all-reduce after each. load_weights() packs these views and reads from the mapping only what they
// cover. LlamaWeights owns its packed matrices; `embedding` still points into the Checkpoint, which
// must outlive it. Called once a rank, at load. Errors: InvalidArgument (tp_size does not divide).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/weight.h"
#include "parallel/model/checkpoint.h"

namespace annulus::parallel {

struct LayerSlice {
  std::array<kernels::WeightSource, 3> qkv;      // [(heads | kv_heads | kv_heads) / tp * d, dim]
  kernels::WeightSource o;                       // [dim, heads / tp * d]
  std::array<kernels::WeightSource, 2> gate_up;  // [ffn / tp, dim] each
  kernels::WeightSource down;                    // [dim, ffn / tp]
};

// tp_size passes check_tp.
LayerSlice slice_layer(const LlamaConfig& config, const LayerTensors& layer, int tp_rank,
                       int tp_size);
kernels::WeightSource slice_head(const LlamaConfig& config, const ModelTensors& tensors,
                                 int tp_rank, int tp_size);

struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;  // [dim]
  kernels::PackedMatrix qkv;               // rows [q; k; v] of this rank
  kernels::PackedMatrix o;
  kernels::PackedMatrix gate_up;  // rows [gate; up] of this rank
  kernels::PackedMatrix down;
};

struct LlamaWeights {
  kernels::WeightSource embedding;  // whole table in the mapping: rows are looked up in the file
  std::vector<float> output_norm;
  std::vector<LayerWeights> layers;
  kernels::PackedMatrix head;  // vocabulary rows [tp_rank * vocab / tp, ...)
  int64_t bytes = 0;           // memory held, the mapping aside
};

// Source bytes packed so far, and in all.
using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

absl::StatusOr<LlamaWeights> load_weights(const Checkpoint& checkpoint, int tp_rank, int tp_size,
                                          kernels::Precision precision,
                                          const LoadProgress& progress = {});

}  // namespace annulus::parallel
