// SPDX-License-Identifier: Apache-2.0
#include "parallel/rank_memory.h"

#include <algorithm>
#include <span>

#include "kernels/core/math.h"
#include "parallel/rank.h"

namespace annulus::parallel {
namespace {

using kernels::ceil_div;
using kernels::WeightSource;

int64_t held_bytes(std::span<const WeightSource> sources, const MemoryQuestion& in) {
  return in.gpu ? kernels::bytes_on_gpu(sources, in.precision)
                : kernels::PackedMatrix::bytes_of(sources, in.precision);
}

int64_t weight_bytes(const Checkpoint& checkpoint, const MemoryQuestion& in) {
  const LlamaConfig& config = checkpoint.config();
  const ModelTensors& tensors = checkpoint.tensors();
  const WeightSource head = slice_head(config, tensors, 0, in.topology.tp);
  const int64_t norm = int64_t{config.dim} * 4;
  int64_t bytes = held_bytes({&head, 1}, in) + norm;
  if (in.gpu) bytes += held_bytes({&tensors.embedding, 1}, in);
  for (const LayerTensors& layer : tensors.layers) {
    const LayerSlice slice = slice_layer(config, layer, 0, in.topology.tp);
    bytes += held_bytes(slice.qkv, in) + held_bytes({&slice.o, 1}, in) +
             held_bytes(slice.gate_up, in) + held_bytes({&slice.down, 1}, in) + 2 * norm;
  }
  return bytes;
}

}  // namespace

RankMemory rank_memory(const Checkpoint& checkpoint, const MemoryQuestion& in) {
  const LlamaConfig& config = checkpoint.config();
  const AttentionShape shape = attention_shape(config, in.topology, in.precision);
  RankMemory memory;
  memory.weight_bytes = weight_bytes(checkpoint, in);
  const int64_t wanted_rows =
      in.kv_rows > 0 ? in.kv_rows : default_kv_rows(in.context, in.topology.cp, in.page_tokens);
  const int64_t kv_rows = ceil_div(wanted_rows, int64_t{in.page_tokens}) * in.page_tokens;
  memory.kv_bytes = kv_rows * shape.kv_row_bytes() * shape.layers;

  // Rows of fp32 that forward() and attend() take at once (llama_inl.h, rank_inl.h).
  const int64_t q = int64_t{shape.heads} * shape.head_dim;
  const int64_t kv = int64_t{shape.kv_heads} * shape.head_dim, ffn = config.ffn / in.topology.tp;
  const int64_t row_floats =
      3 * int64_t{config.dim} + 2 * q + 2 * kv + 3 * ffn + shape.heads + config.head_dim;
  const int64_t rows = ceil_div(std::min(in.chunk_tokens, in.context), int64_t{in.topology.cp});
  memory.activation_bytes =
      rows * (row_floats * 4 + shape.q_row_bytes()) + int64_t{config.vocab} / in.topology.tp * 4;
  if (in.topology.cp > 1) {
    const int64_t payload = ceil_div(in.context, int64_t{in.topology.cp}) * shape.kv_row_bytes();
    memory.workspace_bytes = std::min(3 * payload, in.workspace_limit_bytes);
  }
  return memory;
}

}  // namespace annulus::parallel
