// SPDX-License-Identifier: Apache-2.0
// load_weights(), instantiated for each queue in on_<device>.cc.
#pragma once

#include <span>
#include <utility>

#include "parallel/model/weights.h"

namespace annulus::parallel {

template <class Queue>
absl::StatusOr<LlamaWeights<Queue>> load_weights(Queue& queue, const Checkpoint& checkpoint,
                                                 int tp_rank, int tp_size,
                                                 kernels::Precision precision,
                                                 const LoadProgress& progress) {
  using Matrix = typename Queue::Matrix;
  const LlamaConfig& config = checkpoint.config();
  const ModelTensors& tensors = checkpoint.tensors();
  const absl::Status status = check_tp(config, tp_size);
  if (!status.ok()) return status;

  const kernels::WeightSource head = slice_head(config, tensors, tp_rank, tp_size);
  std::vector<LayerSlice> slices;
  for (const LayerTensors& layer : tensors.layers) {
    slices.push_back(slice_layer(config, layer, tp_rank, tp_size));
  }
  const auto all_of = [](std::span<const kernels::WeightSource> sources) {
    int64_t bytes = 0;
    for (const kernels::WeightSource& source : sources) bytes += source_bytes(source);
    return bytes;
  };
  int64_t done = 0, total = source_bytes(head);
  for (const LayerSlice& slice : slices) {
    total += all_of(slice.qkv) + source_bytes(slice.o) + all_of(slice.gate_up) +
             source_bytes(slice.down);
  }
  if (!Queue::kHostMemory) total += source_bytes(tensors.embedding);

  LlamaWeights<Queue> weights;
  const auto load = [&](std::span<const kernels::WeightSource> sources) {
    Matrix matrix = Matrix::load(queue, sources, precision);
    weights.bytes += matrix.bytes();
    done += all_of(sources);
    if (progress) progress(done, total);
    return matrix;
  };
  const auto norm = [&](const std::vector<float>& values) {
    kernels::Mirror<Queue, float> out(values);
    out.sync(queue);
    weights.bytes += static_cast<int64_t>(values.size() * sizeof(float));
    return out;
  };
  weights.embedding = tensors.embedding;
  if constexpr (!Queue::kHostMemory) {
    weights.table = load({&tensors.embedding, 1});
    weights.embedding = weights.table.rows();
  }
  weights.output_norm = norm(tensors.output_norm);
  for (size_t i = 0; i < slices.size(); ++i) {
    const LayerSlice& slice = slices[i];
    LayerWeights<Queue>& layer = weights.layers.emplace_back();
    layer.attn_norm = norm(tensors.layers[i].attn_norm);
    layer.ffn_norm = norm(tensors.layers[i].ffn_norm);
    layer.qkv = load(slice.qkv);
    layer.o = load({&slice.o, 1});
    layer.gate_up = load(slice.gate_up);
    layer.down = load({&slice.down, 1});
  }
  weights.head = load({&head, 1});
  checkpoint.drop_resident();
  return weights;
}

}  // namespace annulus::parallel
