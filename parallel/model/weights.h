// SPDX-License-Identifier: Apache-2.0
// The weights of one tensor-parallel rank. slice_layer() and slice_head() are pure views into the
// checkpoint: q, k, v, gate, up and head are cut by output rows (whole heads, FFN columns,
// vocabulary), o and down by input columns, so that the ranks' partial sums are joined by one
// all-reduce after each. load_weights() brings these views to the queue's device and reads from the
// mapping only what they cover, of which no more than one matrix is resident; weight_transfer.h
// gets the same bytes from another rank. LlamaWeights owns what it holds; on CPUs `embedding` still
// points into the Checkpoint, which must outlive it, unless that has no file. Called once a rank,
// at load. Errors: InvalidArgument (tp_size does not divide); DeviceError (memory). Defined in
// weights_inl.h.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/mirror.h"
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
int64_t source_bytes(const kernels::WeightSource& source);  // in the file

// Everything a rank loads.
struct RankSlice {
  std::vector<LayerSlice> layers;
  kernels::WeightSource head;
};
RankSlice slice_rank(const Checkpoint& checkpoint, int tp_rank, int tp_size);

// Depends on every byte and its place; as fast as memory. `seed`: the digest of what came before.
uint64_t digest_bytes(std::span<const std::byte> bytes, uint64_t seed);

template <class Queue>
struct LayerWeights {
  kernels::Mirror<Queue, float> attn_norm, ffn_norm;  // [dim]
  typename Queue::Matrix qkv;                         // rows [q; k; v] of this rank
  typename Queue::Matrix o;
  typename Queue::Matrix gate_up;  // rows [gate; up] of this rank
  typename Queue::Matrix down;
};

template <class Queue>
struct LlamaWeights {
  kernels::WeightSource embedding;    // the whole table, as the device reads it
  typename Queue::Matrix table;       // holds it where the device does not read the mapping
  typename Queue::Memory file_table;  // holds it, as in the file, where there is no mapping to read
  kernels::Mirror<Queue, float> output_norm;
  std::vector<LayerWeights<Queue>> layers;
  typename Queue::Matrix head;  // vocabulary rows [tp_rank * vocab / tp, ...)
  int64_t bytes = 0;            // memory held, the mapping aside
  bool whole = false;           // all of it is there
};

// Of norms and matrices: equal on ranks of one slice and precision. Reads all of them.
template <class Queue>
uint64_t digest_of(Queue& queue, const LlamaWeights<Queue>& weights);

// Source bytes packed so far, and in all.
using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;
// Told of each matrix once the device holds it, in order; the bytes stay where they are.
using OnMatrix = std::function<void(std::span<const std::byte> contents)>;

template <class Queue>
absl::StatusOr<LlamaWeights<Queue>> load_weights(Queue& queue, const Checkpoint& checkpoint,
                                                 int tp_rank, int tp_size,
                                                 kernels::Precision precision,
                                                 const LoadProgress& progress = {});
// The same into `weights`, whose matrices stay where on_matrix was told, whatever follows; empty
// before.
template <class Queue>
absl::Status load_weights_into(Queue& queue, const Checkpoint& checkpoint, int tp_rank, int tp_size,
                               kernels::Precision precision, const LoadProgress& progress,
                               const OnMatrix& on_matrix, LlamaWeights<Queue>& weights);

}  // namespace annulus::parallel
