// SPDX-License-Identifier: Apache-2.0
// Shapes of the models that simulate knows by name, and what they weigh.
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "bench/simulate_engine.h"

namespace annulus::bench {
namespace {

struct Shape {
  const char* name;
  int32_t layers, dim, heads, kv_heads, head_dim, ffn, vocab;
  double attention_weight_bytes, ffn_weight_bytes, head_weight_bytes;
};
constexpr Shape kShapes[] = {
    // 405B as arXiv 2411.01783 ran it: feed-forward weights FP8, the rest 16 bits.
    {"llama-405b", 126, 16384, 128, 8, 128, 53248, 128256, 2, 1, 2},
    {"llama-70b", 80, 8192, 64, 8, 128, 28672, 128256, 2, 2, 2},
    {"llama-8b", 32, 4096, 32, 8, 128, 14336, 128256, 2, 2, 2},
    // Q4_1 with a Q8_0 head, as deploy/fetch-model brings it.
    {"smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 0.625, 0.625, 1.0625},
};

double layer_attention(const parallel::LlamaConfig& c) {
  return double{2} * c.dim * c.head_dim * (c.heads + c.kv_heads);
}
double layer_ffn(const parallel::LlamaConfig& c) {
  return double{3} * c.dim * c.ffn;
}

}  // namespace

double SimModel::weight_bytes(int32_t tp) const {
  const double layer =
      layer_attention(config) * attention_weight_bytes + layer_ffn(config) * ffn_weight_bytes;
  const double table = double{1} * config.vocab * config.dim * head_weight_bytes;
  return (layer * config.layers + table) / tp + table;  // the embedding table is whole
}

double SimModel::kv_row_bytes(int32_t tp) const {
  return 2.0 * 2 * config.layers * config.kv_heads / tp * config.head_dim;
}

absl::StatusOr<SimModel> sim_model(const std::string& name_or_path) {
  SimModel model;
  std::string known;
  for (const Shape& s : kShapes) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", s.name);
    if (name_or_path != s.name) continue;
    parallel::LlamaConfig& c = model.config;
    c.name = s.name;
    c.layers = s.layers;
    c.dim = s.dim;
    c.heads = s.heads;
    c.kv_heads = s.kv_heads;
    c.head_dim = s.head_dim;
    c.ffn = s.ffn;
    c.vocab = s.vocab;
    c.context = c.trained_context = int64_t{1} << 30;
    c.rms_eps = 1e-5;
    c.rope_theta = 5e5;
    model.attention_weight_bytes = s.attention_weight_bytes;
    model.ffn_weight_bytes = s.ffn_weight_bytes;
    model.head_weight_bytes = s.head_weight_bytes;
    return model;
  }
  std::ifstream in(name_or_path, std::ios::binary);
  if (!in) {
    return absl::InvalidArgumentError(
        absl::StrCat(name_or_path, ": no such config.json and no known model (", known, ")"));
  }
  const std::string json{std::istreambuf_iterator<char>(in), {}};
  absl::StatusOr<parallel::LlamaConfig> config = parallel::config_from_json(json, name_or_path);
  if (!config.ok()) return config.status();
  model.config = *std::move(config);
  return model;
}

}  // namespace annulus::bench
