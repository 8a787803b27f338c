// SPDX-License-Identifier: Apache-2.0
// load_weights() and its pieces, instantiated for each queue in on_<device>.cc.
#pragma once

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

#include "parallel/model/weights.h"

namespace annulus::parallel {

// make(sources, matrix) for every matrix of the slice, in the order in which weights are loaded and
// sent. weights.layers has its size.
template <class Queue, class Make>
void each_matrix(const Checkpoint& checkpoint, const RankSlice& slice, LlamaWeights<Queue>& weights,
                 const Make& make) {
  using Sources = std::span<const kernels::WeightSource>;
  if constexpr (!Queue::kHostMemory) {
    make(Sources{&checkpoint.tensors().embedding, 1}, weights.table);
  }
  for (size_t i = 0; i < slice.layers.size(); ++i) {
    const LayerSlice& from = slice.layers[i];
    LayerWeights<Queue>& to = weights.layers[i];
    make(Sources{from.qkv}, to.qkv);
    make(Sources{&from.o, 1}, to.o);
    make(Sources{from.gate_up}, to.gate_up);
    make(Sources{&from.down, 1}, to.down);
  }
  make(Sources{&slice.head, 1}, weights.head);
}

// The same order.
template <class Queue>
std::vector<std::span<const std::byte>> matrices_of(const LlamaWeights<Queue>& weights) {
  std::vector<std::span<const std::byte>> out;
  if constexpr (!Queue::kHostMemory) out.push_back(weights.table.contents());
  for (const LayerWeights<Queue>& layer : weights.layers) {
    for (const auto* matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      out.push_back(matrix->contents());
    }
  }
  out.push_back(weights.head.contents());
  return out;
}

// All norms, [1 + 2 * layers, dim]: the output norm, then attn_norm and ffn_norm of each layer.
template <class Layers>
std::vector<float> join_norms(const std::vector<float>& output_norm, const Layers& layers) {
  std::vector<float> all = output_norm;
  for (const auto& layer : layers) {
    for (const std::vector<float>* norm : {&layer.attn_norm, &layer.ffn_norm}) {
      all.insert(all.end(), norm->begin(), norm->end());
    }
  }
  return all;
}
template <class Queue>
std::vector<float> norms_of(const LlamaWeights<Queue>& weights) {
  std::vector<LayerTensors> layers(weights.layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].attn_norm = weights.layers[i].attn_norm.host();
    layers[i].ffn_norm = weights.layers[i].ffn_norm.host();
  }
  return join_norms(weights.output_norm.host(), layers);
}

template <class Queue>
void set_norms(Queue& queue, std::span<const float> all, LlamaWeights<Queue>& weights) {
  const size_t dim = all.size() / (1 + 2 * weights.layers.size());
  const auto next = [&] {
    kernels::Mirror<Queue, float> out({all.begin(), all.begin() + static_cast<int64_t>(dim)});
    out.sync(queue);
    weights.bytes += static_cast<int64_t>(dim * sizeof(float));
    all = all.subspan(dim);
    return out;
  };
  weights.output_norm = next();
  for (LayerWeights<Queue>& layer : weights.layers) {
    layer.attn_norm = next();
    layer.ffn_norm = next();
  }
}

// What embed() looks rows up in: a table that the weights hold, or the mapping of the file.
template <class Queue>
void set_embedding(const Checkpoint& checkpoint, LlamaWeights<Queue>& weights) {
  weights.embedding = checkpoint.tensors().embedding;
  if constexpr (!Queue::kHostMemory) {
    weights.embedding = weights.table.rows();
  } else if (weights.file_table.bytes() > 0) {
    weights.embedding.data = weights.file_table.data();
    if (weights.embedding.format == kernels::WeightFormat::kF8E4M3) {
      weights.embedding.row_scales = weights.embedding.data + source_bytes(weights.embedding);
    }
  }
}

template <class Queue>
uint64_t digest_of(Queue& queue, const LlamaWeights<Queue>& weights) {
  constexpr size_t kPiece = size_t{32} << 20;  // on its way from the device
  constexpr auto kPatience = std::chrono::seconds(60);
  const std::vector<float> norms = norms_of(weights);
  uint64_t digest = digest_bytes(std::as_bytes(std::span(norms)), 0);
  std::vector<std::byte> piece;
  for (std::span<const std::byte> matrix : matrices_of(weights)) {
    if constexpr (Queue::kHostMemory) {
      digest = digest_bytes(matrix, digest);
    } else {
      for (; !matrix.empty(); matrix = matrix.subspan(piece.size())) {
        piece.resize(std::min(kPiece, matrix.size()));
        queue.download(std::span(piece), matrix.data());
        queue.finish(std::chrono::steady_clock::now() + kPatience);
        digest = digest_bytes(piece, digest);
      }
    }
  }
  return digest;
}

template <class Queue>
absl::Status load_weights_into(Queue& queue, const Checkpoint& checkpoint, int tp_rank, int tp_size,
                               kernels::Precision precision, const LoadProgress& progress,
                               const OnMatrix& on_matrix, LlamaWeights<Queue>& weights) {
  const ModelTensors& tensors = checkpoint.tensors();
  if (absl::Status status = check_tp(checkpoint.config(), tp_size); !status.ok()) return status;

  const RankSlice slice = slice_rank(checkpoint, tp_rank, tp_size);
  weights.layers.resize(slice.layers.size());
  const auto all_of = [](std::span<const kernels::WeightSource> sources) {
    int64_t bytes = 0;
    for (const kernels::WeightSource& source : sources) bytes += source_bytes(source);
    return bytes;
  };
  int64_t done = 0, total = 0;
  each_matrix(checkpoint, slice, weights,
              [&](auto sources, const auto&) { total += all_of(sources); });

  set_norms(queue, std::span<const float>(join_norms(tensors.output_norm, tensors.layers)),
            weights);
  each_matrix(checkpoint, slice, weights, [&](auto sources, auto& matrix) {
    matrix = Queue::Matrix::load(queue, sources, precision);
    weights.bytes += matrix.bytes();
    done += all_of(sources);
    if (progress) progress(done, total);
    if (on_matrix) on_matrix(std::as_const(matrix).contents());
    // Both queues copy what they load: without this, all of a rank's slice would be resident twice
    // at the end. What is still read of the mapping, the embedding's rows, is mapped again.
    checkpoint.drop_resident();
  });
  set_embedding(checkpoint, weights);
  weights.whole = true;
  return absl::OkStatus();
}

template <class Queue>
absl::StatusOr<LlamaWeights<Queue>> load_weights(Queue& queue, const Checkpoint& checkpoint,
                                                 int tp_rank, int tp_size,
                                                 kernels::Precision precision,
                                                 const LoadProgress& progress) {
  LlamaWeights<Queue> weights;
  const absl::Status status =
      load_weights_into(queue, checkpoint, tp_rank, tp_size, precision, progress, {}, weights);
  if (!status.ok()) return status;
  return weights;
}

}  // namespace annulus::parallel
