// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/synthetic.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/core/dtype.h"

namespace annulus::parallel {
namespace {

using nlohmann::json;

constexpr int64_t kWindows = 1024;  // where matrices may begin, one row stride apart
constexpr float kSpread = 0.035f;   // uniform: a standard deviation of 0.02
constexpr std::string_view kF8Suffix = "-FP8";
constexpr float kInputBound = 1200;  // as in Llama-3.1-405B-Instruct-FP8

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Uniform within +-1, exact in a float.
float draw(uint64_t i) {
  return static_cast<float>(mix(i) >> 40) * 0x1p-23f - 1;
}

// Where the window of a matrix of this name begins.
size_t window_of(std::string_view name) {
  uint64_t window = 0;
  for (const char c : name) window = mix(window ^ static_cast<uint8_t>(c));
  return window % kWindows * SyntheticWeights::kRowStrideBytes;
}

json llama_json(int layers, int dim, int heads, int kv_heads, int head_dim, int ffn, int vocab) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_act", "silu"},
          {"num_hidden_layers", layers},
          {"hidden_size", dim},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"head_dim", head_dim},
          {"intermediate_size", ffn},
          {"vocab_size", vocab},
          {"max_position_embeddings", 131072},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},
          {"tie_word_embeddings", false}};
}

// The published configurations of Llama 3.1 8B, 70B and 405B and 3.2 1B, and of SmolLM2 135M.
std::map<std::string, json, std::less<>> published() {
  std::map<std::string, json, std::less<>> shapes = {
      {"135M", llama_json(30, 576, 9, 3, 64, 1536, 49152)},
      {"1B", llama_json(16, 2048, 32, 8, 64, 8192, 128256)},
      {"8B", llama_json(32, 4096, 32, 8, 128, 14336, 128256)},
      {"70B", llama_json(80, 8192, 64, 8, 128, 28672, 128256)},
      {"405B", llama_json(126, 16384, 128, 8, 128, 53248, 128256)}};
  for (auto& [name, shape] : shapes) {
    shape["rope_scaling"] = {{"rope_type", "llama3"},
                             {"factor", name == "1B" ? 32.0 : 8.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 8192}};
  }
  json& small = shapes["135M"];
  small.erase("rope_scaling");
  small.update({{"max_position_embeddings", 8192}, {"rope_theta", 100000.0}});
  for (const char* tied : {"135M", "1B"}) shapes[tied]["tie_word_embeddings"] = true;
  return shapes;
}

constexpr std::pair<const char*, const char*> kKeys[] = {
    {"layers", "num_hidden_layers"},  {"dim", "hidden_size"},
    {"heads", "num_attention_heads"}, {"kv_heads", "num_key_value_heads"},
    {"head_dim", "head_dim"},         {"ffn", "intermediate_size"},
    {"vocab", "vocab_size"},          {"context", "max_position_embeddings"},
};

absl::StatusOr<json> from_list(const std::string& list, const std::string& label) {
  std::map<std::string, int64_t, std::less<>> values;
  for (const absl::string_view part : absl::StrSplit(list, ',')) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(part, absl::MaxSplits('=', 1));
    const auto* key = std::ranges::find_if(kKeys, [&](auto& k) { return k.first == pair.first; });
    if (key == std::end(kKeys)) {
      return absl::InvalidArgumentError(absl::StrCat(
          label, ": no key \"", pair.first, "\"; there are ",
          absl::StrJoin(kKeys, ", ",
                        [](std::string* out, auto& k) { absl::StrAppend(out, k.first); })));
    }
    int32_t value = 0;
    if (!absl::SimpleAtoi(pair.second, &value) || value < 1)
      return absl::InvalidArgumentError(absl::StrCat(label, ": ", pair.first, " is \"", pair.second,
                                                     "\", not a positive number"));
    values[key->first] = value;
  }
  for (const char* needed : {"layers", "dim", "heads"})
    if (!values.contains(needed))
      return absl::InvalidArgumentError(
          absl::StrCat(label, ": ", needed, " is missing (as in layers=2,dim=512,heads=16)"));
  values.try_emplace("ffn", 4 * values["dim"]);
  values.try_emplace("vocab", 32000);
  json config = llama_json(1, 1, 1, 1, 1, 1, 1);
  for (const char* optional : {"num_key_value_heads", "head_dim"}) config.erase(optional);
  for (const auto& [key, name] : kKeys)
    if (const auto it = values.find(key); it != values.end()) config[name] = it->second;
  return config;
}

}  // namespace

bool synthetic_has_f8(std::string_view shape) {
  return shape.ends_with(kF8Suffix);
}

absl::StatusOr<LlamaConfig> synthetic_config(std::string_view shape,
                                             const ConfigOverrides& overrides) {
  const std::string label = std::string(kSyntheticPrefix) + std::string(shape);
  if (synthetic_has_f8(shape)) shape.remove_suffix(kF8Suffix.size());
  const auto shapes = published();
  std::string text;
  std::error_code error;
  if (const auto it = shapes.find(shape); it != shapes.end()) {
    text = it->second.dump();
  } else if (shape.find('=') != std::string_view::npos &&
             shape.find('/') == std::string_view::npos) {
    const auto list = from_list(std::string(shape), label);
    if (!list.ok()) return list.status();
    text = list->dump();
  } else {
    std::filesystem::path path(shape);
    if (std::filesystem::is_directory(path, error)) path /= "config.json";
    if (!std::filesystem::is_regular_file(path, error))
      return absl::NotFoundError(absl::StrCat(
          label, ": no such shape; there are ",
          absl::StrJoin(shapes, ", ",
                        [](std::string* out, auto& s) { absl::StrAppend(out, s.first); }),
          ", the path of a config.json, or a list such as layers=2,dim=512,heads=16,kv_heads=1; "
          "behind each, -FP8"));
    constexpr uintmax_t kMostBytes = 1 << 20;
    if (std::filesystem::file_size(path, error) > kMostBytes)
      return absl::InvalidArgumentError(absl::StrCat(label, ": too large for a config"));
    std::ostringstream content;
    content << std::ifstream(path, std::ios::binary).rdbuf();
    text = content.str();
  }
  auto config = config_from_json(text, label, overrides);
  if (!config.ok()) return config;
  // Far above any model; what is generated stays below a gigabyte.
  constexpr int64_t kMostLayers = 4096, kMostColumns = 1 << 20, kMostVocab = 1 << 22;
  const int64_t q = int64_t{config->heads} * config->head_dim;
  if (config->layers > kMostLayers || config->vocab > kMostVocab ||
      std::max({int64_t{config->dim}, int64_t{config->ffn}, q}) > kMostColumns)
    return absl::InvalidArgumentError(
        absl::StrCat(label, ": at most ", kMostLayers, " layers, rows of ", kMostColumns,
                     " weights and a vocabulary of ", kMostVocab, " are generated"));
  config->name = label;
  return config;
}

SyntheticWeights::SyntheticWeights(const LlamaConfig& config, bool f8) {
  const int64_t q = int64_t{config.heads} * config.head_dim;
  const int64_t widest = std::max({int64_t{config.dim}, int64_t{config.ffn}, q});
  const int64_t rows = std::max(widest, int64_t{config.vocab});
  ones_.assign(static_cast<size_t>(config.dim), kernels::to_bf16(1.0f).bits);
  random_.resize(static_cast<size_t>((rows + kWindows) * (kRowStrideBytes / 2) + widest));
  for (size_t i = 0; i < random_.size(); ++i) random_[i] = kernels::to_bf16(kSpread * draw(i)).bits;
  if (!f8) return;
  codes_.resize(static_cast<size_t>((widest + kWindows) * kRowStrideBytes + widest));
  for (size_t i = 0; i < codes_.size(); ++i)
    codes_[i] = kernels::float_to_f8_e4m3(kernels::kF8Largest * draw(i));
  row_scales_.resize(static_cast<size_t>(widest) + 1);
  for (size_t i = 0; i < row_scales_.size(); ++i)  // within a quarter of the mean
    row_scales_[i] = kSpread / kernels::kF8Largest * (1 + draw(i) / 4);
  row_scales_.back() = kInputBound;
}

std::span<const std::byte> SyntheticWeights::matrix(std::string_view name, int64_t rows,
                                                    int64_t cols) const {
  return std::as_bytes(std::span(random_))
      .subspan(window_of(name), static_cast<size_t>((rows - 1) * kRowStrideBytes + cols * 2));
}

std::span<const std::byte> SyntheticWeights::matrix_f8(std::string_view name, int64_t rows,
                                                       int64_t cols) const {
  return std::as_bytes(std::span(codes_))
      .subspan(window_of(name), static_cast<size_t>((rows - 1) * kRowStrideBytes + cols));
}

std::span<const std::byte> SyntheticWeights::row_scales(int64_t rows) const {
  return std::as_bytes(std::span(row_scales_)).first(static_cast<size_t>(rows) * sizeof(float));
}

std::span<const std::byte> SyntheticWeights::input_bound() const {
  return std::as_bytes(std::span(row_scales_)).last(sizeof(float));
}

std::span<const std::byte> SyntheticWeights::ones(int64_t count) const {
  return std::as_bytes(std::span(ones_)).first(static_cast<size_t>(count) * 2);
}

}  // namespace annulus::parallel
