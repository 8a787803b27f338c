// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/weights.h"

#include <array>
#include <bit>
#include <cstring>

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

RankSlice slice_rank(const Checkpoint& checkpoint, int tp_rank, int tp_size) {
  RankSlice slice;
  for (const LayerTensors& layer : checkpoint.tensors().layers) {
    slice.layers.push_back(slice_layer(checkpoint.config(), layer, tp_rank, tp_size));
  }
  slice.head = slice_head(checkpoint.config(), checkpoint.tensors(), tp_rank, tp_size);
  return slice;
}

// Four chains of words, so that a multiplication need not wait for the one before. Each step is a
// bijection of its chain: two inputs that differ in one word always differ in the end.
uint64_t digest_bytes(std::span<const std::byte> bytes, uint64_t seed) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;
  const auto step = [](uint64_t chain, uint64_t word) {
    return std::rotl((chain ^ word) * kOdd, 29);
  };
  std::array<uint64_t, 4> chains = {seed, ~seed, seed + kOdd, bytes.size()};
  size_t at = 0;
  for (; at + sizeof chains <= bytes.size(); at += sizeof chains) {
    std::array<uint64_t, 4> words;
    std::memcpy(words.data(), bytes.data() + at, sizeof words);
    for (size_t i = 0; i < chains.size(); ++i) chains[i] = step(chains[i], words[i]);
  }
  for (; at < bytes.size(); ++at) chains[0] = step(chains[0], std::to_integer<uint64_t>(bytes[at]));
  uint64_t out = 0;
  for (const uint64_t chain : chains) out = step(out, chain ^ (chain >> 32));
  return out ^ (out >> 32);
}

}  // namespace annulus::parallel
