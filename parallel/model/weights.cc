// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/weights.h"

#include "kernels/core/check.h"

namespace annulus::parallel {
namespace {

using kernels::WeightSource;

WeightSource rows_of_rank(const WeightSource& source, int tp_rank, int tp_size) {
  const int64_t count = source.rows / tp_size;
  return source.slice_rows(tp_rank * count, count);
}

WeightSource cols_of_rank(const WeightSource& source, int tp_rank, int tp_size) {
  const int64_t count = source.cols / tp_size;
  return source.slice_cols(tp_rank * count, count);
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

int64_t source_bytes(const WeightSource& source) {
  const kernels::WeightBlock block = kernels::block_of(source.format);
  return source.rows * source.cols / block.weights * block.bytes;
}

WeightSource slice_head(const LlamaConfig& config, const ModelTensors& tensors, int tp_rank,
                        int tp_size) {
  ANNULUS_CHECK(tp_rank >= 0 && tp_rank < tp_size && config.vocab % tp_size == 0, "tp_rank ",
                tp_rank, " tp_size ", tp_size);
  return rows_of_rank(tensors.head, tp_rank, tp_size);
}

}  // namespace annulus::parallel
