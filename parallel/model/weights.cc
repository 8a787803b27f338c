// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/weights.h"

#include <span>
#include <utility>

#include "kernels/core/check.h"

namespace annulus::parallel {
namespace {

using kernels::PackedMatrix;
using kernels::WeightSource;

WeightSource rows_of_rank(const WeightSource& source, int tp_rank, int tp_size) {
  const int64_t count = source.rows / tp_size;
  return source.slice_rows(tp_rank * count, count);
}

WeightSource cols_of_rank(const WeightSource& source, int tp_rank, int tp_size) {
  const int64_t count = source.cols / tp_size;
  return source.slice_cols(tp_rank * count, count);
}

int64_t source_bytes(const WeightSource& source) {
  const kernels::WeightBlock block = kernels::block_of(source.format);
  return source.rows * source.cols / block.weights * block.bytes;
}

int64_t source_bytes(const LayerSlice& slice) {
  int64_t total = source_bytes(slice.o) + source_bytes(slice.down);
  for (const WeightSource& source : slice.qkv) total += source_bytes(source);
  for (const WeightSource& source : slice.gate_up) total += source_bytes(source);
  return total;
}

int64_t norm_bytes(const std::vector<float>& norm) {
  return static_cast<int64_t>(norm.size() * sizeof(float));
}

}  // namespace

LayerSlice slice_layer(const LlamaConfig& config, const LayerTensors& layer, int tp_rank,
                       int tp_size) {
  ANNULUS_CHECK(tp_rank >= 0 && tp_rank < tp_size && config.heads % tp_size == 0 &&
                    config.kv_heads % tp_size == 0 && config.ffn % tp_size == 0,
                "tp_rank ", tp_rank, " tp_size ", tp_size);
  const auto rows = [&](const WeightSource& s) { return rows_of_rank(s, tp_rank, tp_size); };
  const auto cols = [&](const WeightSource& s) { return cols_of_rank(s, tp_rank, tp_size); };
  return {.qkv = {rows(layer.q), rows(layer.k), rows(layer.v)},
          .o = cols(layer.o),
          .gate_up = {rows(layer.gate), rows(layer.up)},
          .down = cols(layer.down)};
}

WeightSource slice_head(const LlamaConfig& config, const ModelTensors& tensors, int tp_rank,
                        int tp_size) {
  ANNULUS_CHECK(tp_rank >= 0 && tp_rank < tp_size && config.vocab % tp_size == 0, "tp_rank ",
                tp_rank, " tp_size ", tp_size);
  return rows_of_rank(tensors.head, tp_rank, tp_size);
}

absl::StatusOr<LlamaWeights> load_weights(const Checkpoint& checkpoint, int tp_rank, int tp_size,
                                          kernels::Precision precision,
                                          const LoadProgress& progress) {
  const LlamaConfig& config = checkpoint.config();
  const ModelTensors& tensors = checkpoint.tensors();
  const absl::Status status = check_tp(config, tp_size);
  if (!status.ok()) return status;

  std::vector<LayerSlice> slices;
  const WeightSource head = slice_head(config, tensors, tp_rank, tp_size);
  int64_t done = 0, total = source_bytes(head);
  for (const LayerTensors& layer : tensors.layers) {
    slices.push_back(slice_layer(config, layer, tp_rank, tp_size));
    total += source_bytes(slices.back());
  }
  const auto packed = [&](int64_t bytes) {
    done += bytes;
    if (progress) progress(done, total);
  };

  LlamaWeights weights;
  weights.embedding = tensors.embedding;
  weights.output_norm = tensors.output_norm;
  weights.bytes = norm_bytes(weights.output_norm);
  const auto pack = [&](std::span<const WeightSource> sources) {
    PackedMatrix matrix = PackedMatrix::pack(sources, precision);
    weights.bytes += matrix.bytes();
    return matrix;
  };
  for (size_t i = 0; i < slices.size(); ++i) {
    const LayerSlice& slice = slices[i];
    const LayerTensors& source = tensors.layers[i];
    LayerWeights& layer = weights.layers.emplace_back();
    layer.attn_norm = source.attn_norm;
    layer.ffn_norm = source.ffn_norm;
    weights.bytes += norm_bytes(layer.attn_norm) + norm_bytes(layer.ffn_norm);
    layer.qkv = pack(slice.qkv);
    layer.o = pack({&slice.o, 1});
    layer.gate_up = pack(slice.gate_up);
    layer.down = pack({&slice.down, 1});
    packed(source_bytes(slice));
  }
  weights.head = pack({&head, 1});
  packed(source_bytes(head));
  checkpoint.drop_resident();
  return weights;
}

}  // namespace annulus::parallel
