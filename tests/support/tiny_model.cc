// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/check.h"
#include "tests/support/bytes.h"
#include "tests/support/encode_weights.h"
#include "tests/support/gguf_writer.h"

namespace annulus::testing {
namespace {

namespace fs = std::filesystem;
using kernels::WeightFormat;
using nlohmann::json;

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// One tensor of the model: names in both formats, and how GGUF orders its rows.
struct Entry {
  std::string hf, gguf;
  int64_t rows = 0, cols = 0;  // rows 0: a vector
  WeightFormat format = WeightFormat::kF32;
  bool permuted = false;  // Q or K
};

std::vector<Entry> entries_of(const TinyModel& m) {
  const int64_t q = int64_t{m.heads} * m.head_dim, kv = int64_t{m.kv_heads} * m.head_dim;
  const auto f32 = WeightFormat::kF32;
  std::vector<Entry> all = {
      {"model.embed_tokens.weight", "token_embd.weight", m.vocab, m.dim, m.embedding, false},
      {"model.norm.weight", "output_norm.weight", 0, m.dim, f32, false}};
  if (!m.tied)
    all.push_back({"lm_head.weight", "output.weight", m.vocab, m.dim, m.embedding, false});
  for (int32_t i = 0; i < m.layers; ++i) {
    const auto add = [&](const std::string& hf, const char* gguf, int64_t rows, int64_t cols,
                         bool permuted = false) {
      const bool bf16 = m.f8_as_published && m.matrices == WeightFormat::kF8E4M3 &&
                        (!hf.starts_with("mlp.") || i == 0 || i + 1 == m.layers);
      all.push_back({absl::StrCat("model.layers.", i, ".", hf, ".weight"),
                     absl::StrCat("blk.", i, ".", gguf, ".weight"), rows, cols,
                     rows == 0 ? f32
                     : bf16    ? WeightFormat::kBF16
                               : m.matrices,
                     permuted});
    };
    add("input_layernorm", "attn_norm", 0, m.dim);
    add("self_attn.q_proj", "attn_q", q, m.dim, true);
    add("self_attn.k_proj", "attn_k", kv, m.dim, true);
    add("self_attn.v_proj", "attn_v", kv, m.dim);
    add("self_attn.o_proj", "attn_output", m.dim, q);
    add("post_attention_layernorm", "ffn_norm", 0, m.dim);
    add("mlp.gate_proj", "ffn_gate", m.ffn, m.dim);
    add("mlp.up_proj", "ffn_up", m.ffn, m.dim);
    add("mlp.down_proj", "ffn_down", m.dim, m.ffn);
  }
  return all;
}

// Row of the Hugging Face order that stands in row r of the GGUF order: halves become neighbours.
int64_t unpermuted_row(int64_t r, int64_t head_dim) {
  const int64_t in_head = r % head_dim;
  return r - in_head + in_head / 2 + in_head % 2 * (head_dim / 2);
}

std::vector<std::byte> encode(const TinyModel& model, const Entry& entry, WeightFormat format,
                              bool gguf_order) {
  const int64_t rows = std::max<int64_t>(entry.rows, 1);
  const std::vector<float> values = tiny_tensor(model, entry.hf, entry.rows, entry.cols);
  std::vector<std::byte> out;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = gguf_order && entry.permuted ? unpermuted_row(r, model.head_dim) : r;
    encode_row(format,
               std::span(values).subspan(static_cast<size_t>(from * entry.cols),
                                         static_cast<size_t>(entry.cols)),
               out);
  }
  return out;
}

// The printable stand-in of a byte in byte-level BPE vocabularies, UTF-8.
std::string byte_token(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 128) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 63))};
}

constexpr const char* kControl[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
constexpr const char* kTemplate =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}";

std::vector<std::string> vocabulary(const TinyModel& model) {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) tokens.push_back(byte_token(b));
  for (const char* token : kControl) tokens.push_back(token);
  while (static_cast<int>(tokens.size()) < model.vocab)
    tokens.push_back(absl::StrCat("<|filler_", tokens.size(), "|>"));
  tokens.resize(static_cast<size_t>(model.vocab));  // a smaller one has no control tokens
  return tokens;
}

std::string tokenizer_json(const TinyModel& model) {
  const std::vector<std::string> tokens = vocabulary(model);
  json vocab = json::object(), added = json::array();
  for (size_t i = 0; i < tokens.size(); ++i) {
    vocab[tokens[i]] = i;
    if (i >= 256)
      added.push_back({{"id", i},
                       {"content", tokens[i]},
                       {"special", true},
                       {"normalized", false},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false}});
  }
  const json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  const json root = {{"version", "1.0"},
                     {"added_tokens", added},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", level},
                     {"decoder", level},
                     {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  return root.dump();
}

void add_tokenizer(const TinyModel& model, GgufWriter& out) {
  const std::vector<std::string> tokens = vocabulary(model);
  std::vector<int32_t> types(tokens.size(), 1);
  for (size_t i = 256; i < types.size(); ++i) types[i] = 3;
  out.string("tokenizer.ggml.model", "gpt2");
  out.string("tokenizer.ggml.pre", "smollm");
  out.strings("tokenizer.ggml.tokens", tokens);
  out.integers("tokenizer.ggml.token_type", types);
  out.strings("tokenizer.ggml.merges", {});
  if (model.vocab < 259) return;
  out.integer("tokenizer.ggml.bos_token_id", 257);
  out.integer("tokenizer.ggml.eos_token_id", 258);
  out.boolean("tokenizer.ggml.add_bos_token", false);
  out.string("tokenizer.chat_template", kTemplate);
}

// What converters write for the llama3 scaling: the ratio of plain and scaled frequencies.
std::vector<float> llama3_divisors(const TinyModel& model) {
  std::vector<float> divisors;
  for (int32_t i = 0; i < model.head_dim / 2; ++i) {
    const parallel::RopeScaling& s = model.rope_scaling;
    const double original = static_cast<double>(s.original_context);
    const double wavelength =
        2 * M_PI * std::pow(model.rope_theta, 2.0 * i / static_cast<double>(model.head_dim));
    double divisor = 1;
    if (wavelength > original / s.low_freq_factor) {
      divisor = s.factor;
    } else if (wavelength >= original / s.high_freq_factor) {
      const double smooth =
          (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      divisor = 1 / ((1 - smooth) / s.factor + smooth);
    }
    divisors.push_back(static_cast<float>(divisor));
  }
  return divisors;
}

const char* dtype_name(WeightFormat format) {
  if (format == WeightFormat::kF16) return "F16";
  if (format == WeightFormat::kBF16) return "BF16";
  if (format == WeightFormat::kF8E4M3) return "F8_E4M3";
  ANNULUS_CHECK(format == WeightFormat::kF32, "safetensors hold F32, F16, BF16 and F8_E4M3");
  return "F32";
}

}  // namespace

std::vector<float> tiny_tensor(const TinyModel& model, const std::string& hf_name, int64_t rows,
                               int64_t cols) {
  uint64_t state = mix(model.seed);
  for (const char c : hf_name) state = mix(state ^ static_cast<uint8_t>(c));
  const float scale = std::sqrt(3.0f / static_cast<float>(cols));
  std::vector<float> values(static_cast<size_t>(std::max<int64_t>(rows, 1) * cols));
  for (size_t i = 0; i < values.size(); ++i) {
    const float unit = static_cast<float>(mix(state + i) >> 40) * 0x1p-23f - 1.0f;  // [-1, 1)
    // Matrices: variance 1 / cols, roughly that of trained ones. Norms: near 1, exact in bf16.
    values[i] = rows == 0 ? 1.0f + std::round(unit * 12) * 0x1p-7f : scale * unit;
  }
  return values;
}

std::vector<std::byte> tiny_gguf(const TinyModel& model) {
  const auto unsigned_of = [](int64_t value) { return static_cast<uint32_t>(value); };
  GgufWriter out;
  out.string("general.architecture", "llama");
  out.string("general.name", "tiny");
  out.integer("llama.block_count", unsigned_of(model.layers));
  out.integer("llama.context_length", unsigned_of(model.context));
  out.integer("llama.embedding_length", unsigned_of(model.dim));
  out.integer("llama.feed_forward_length", unsigned_of(model.ffn));
  out.integer("llama.attention.head_count", unsigned_of(model.heads));
  out.integer("llama.attention.head_count_kv", unsigned_of(model.kv_heads));
  out.integer("llama.attention.key_length", unsigned_of(model.head_dim));
  out.integer("llama.attention.value_length", unsigned_of(model.head_dim));
  out.number("llama.attention.layer_norm_rms_epsilon", static_cast<float>(model.rms_eps));
  out.number("llama.rope.freq_base", static_cast<float>(model.rope_theta));
  out.integer("llama.rope.dimension_count", unsigned_of(model.head_dim));
  out.integer("llama.vocab_size", unsigned_of(model.vocab));
  if (model.rope_scaling.kind == parallel::RopeScaling::Kind::kLinear) {
    out.string("llama.rope.scaling.type", "linear");
    out.number("llama.rope.scaling.factor", static_cast<float>(model.rope_scaling.factor));
  }
  add_tokenizer(model, out);
  if (model.rope_scaling.kind == parallel::RopeScaling::Kind::kLlama3) {
    std::vector<std::byte> data;
    encode_row(WeightFormat::kF32, llama3_divisors(model), data);
    out.tensor("rope_freqs.weight", 0, {model.head_dim / 2}, std::move(data));
  }
  for (const Entry& entry : entries_of(model)) {
    std::vector<int64_t> shape = {entry.cols};
    if (entry.rows > 0) shape.insert(shape.begin(), entry.rows);
    out.tensor(entry.gguf, ggml_type(entry.format), shape,
               encode(model, entry, entry.format, /*gguf_order=*/true));
  }
  return out.finish();
}

void write_gguf(const TinyModel& model, const std::string& path) {
  write_file(path, tiny_gguf(model));
}

std::string tiny_config_json(const TinyModel& model) {
  json root = {{"architectures", {"LlamaForCausalLM"}},
               {"model_type", "llama"},
               {"hidden_act", "silu"},
               {"num_hidden_layers", model.layers},
               {"hidden_size", model.dim},
               {"num_attention_heads", model.heads},
               {"num_key_value_heads", model.kv_heads},
               {"head_dim", model.head_dim},
               {"intermediate_size", model.ffn},
               {"vocab_size", model.vocab},
               {"max_position_embeddings", model.context},
               {"rms_norm_eps", model.rms_eps},
               {"rope_theta", model.rope_theta},
               {"rope_scaling", nullptr},
               {"tie_word_embeddings", model.tied},
               {"bos_token_id", 257},
               {"eos_token_id", 258}};
  if (model.matrices == WeightFormat::kF8E4M3) {
    root["quantization_config"] = {{"quant_method", "fbgemm_fp8"},
                                   {"modules_to_not_convert", {"lm_head"}}};
    if (model.f8_bound_in_config)
      root["quantization_config"]["activation_scale_ub"] = model.f8_bound;
  }
  const parallel::RopeScaling& scaling = model.rope_scaling;
  if (scaling.kind == parallel::RopeScaling::Kind::kLinear)
    root["rope_scaling"] = {{"type", "linear"}, {"factor", scaling.factor}};
  if (scaling.kind == parallel::RopeScaling::Kind::kLlama3)
    root["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", scaling.factor},
                            {"low_freq_factor", scaling.low_freq_factor},
                            {"high_freq_factor", scaling.high_freq_factor},
                            {"original_max_position_embeddings", scaling.original_context}};
  return root.dump(2);
}

std::vector<std::byte> safetensors_bytes(std::span<const NamedTensor> tensors) {
  json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t at = 0;
  for (const NamedTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {at, at + tensor.data.size()}}};
    at += tensor.data.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::vector<std::byte> out;
  append(out, uint64_t{text.size()});
  append_bytes(out, text.data(), text.size());
  for (const NamedTensor& tensor : tensors)
    append_bytes(out, tensor.data.data(), tensor.data.size());
  return out;
}

void write_folder(const TinyModel& model, const std::string& directory, int shards) {
  fs::create_directories(directory);
  write_file(directory + "/config.json", tiny_config_json(model));
  write_file(directory + "/tokenizer.json", tokenizer_json(model));
  const json tokenizer_config = {{"bos_token", kControl[1]},
                                 {"eos_token", kControl[2]},
                                 {"add_bos_token", false},
                                 {"chat_template", kTemplate}};
  write_file(directory + "/tokenizer_config.json", tokenizer_config.dump(2));
  std::vector<std::vector<NamedTensor>> parts(static_cast<size_t>(shards));
  json map = json::object();
  const auto file_of = [&](size_t shard) {
    return shards == 1 ? std::string("model.safetensors")
                       : absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
  };
  size_t next = 0;
  for (const Entry& entry : entries_of(model)) {
    const bool fp8 = model.matrices == WeightFormat::kF8E4M3;
    const WeightFormat format = entry.rows > 0 ? entry.format
                                : fp8          ? WeightFormat::kBF16
                                               : model.matrices;
    std::vector<int64_t> shape = {entry.cols};
    if (entry.rows > 0) shape.insert(shape.begin(), entry.rows);
    const size_t shard = next++ % parts.size();
    const auto put = [&](const std::string& name, const char* dtype, std::vector<int64_t> of,
                         std::vector<std::byte> bytes) {
      parts[shard].push_back({name, dtype, std::move(of), std::move(bytes)});
      map[name] = file_of(shard);
    };
    if (format == WeightFormat::kF8E4M3) {
      auto [codes, scales] = encode_f8_rows(tiny_tensor(model, entry.hf, entry.rows, entry.cols),
                                            static_cast<size_t>(entry.cols));
      put(entry.hf, "F8_E4M3", shape, std::move(codes));
      put(entry.hf + "_scale", "F32", {entry.rows, 1}, std::move(scales));
      if (!model.f8_bound_in_tensors) continue;
      std::vector<std::byte> bound;
      append(bound, model.f8_bound);
      put(entry.hf.substr(0, entry.hf.size() - 6) + "input_scale_ub", "F32", {1}, std::move(bound));
      continue;
    }
    put(entry.hf, dtype_name(format), shape, encode(model, entry, format, /*gguf_order=*/false));
  }
  for (size_t shard = 0; shard < parts.size(); ++shard)
    write_file(absl::StrCat(directory, "/", file_of(shard)), safetensors_bytes(parts[shard]));
  if (shards > 1)
    write_file(directory + "/model.safetensors.index.json", json{{"weight_map", map}}.dump(2));
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
  out.close();
  ANNULUS_CHECK(out.good(), "cannot write ", path);
}
void write_file(const std::string& path, std::string_view text) {
  write_file(path, std::as_bytes(std::span(text.data(), text.size())));
}

std::string scratch_directory() {
  struct Root {
    std::string path;
    Root() : path((fs::temp_directory_path() / "annulus-test-XXXXXX").string()) {
      ANNULUS_CHECK(mkdtemp(path.data()) != nullptr, path);
    }
    ~Root() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  };
  static Root root;
  static int count = 0;
  const std::string path = absl::StrCat(root.path, "/", count++);
  fs::create_directories(path);
  return path;
}

absl::StatusOr<std::string> test_model_path() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  std::string path = variable("ANNULUS_MODEL");
  if (path.empty()) {
    const std::string cache = variable("XDG_CACHE_HOME");
    path = (cache.empty() ? variable("HOME") + "/.cache" : cache) +
           "/annulus/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  }
  std::error_code error;
  if (fs::exists(path, error)) return path;
  return absl::NotFoundError(absl::StrCat(
      path, ": the test model is missing; run deploy/fetch-model, or set ANNULUS_MODEL to it"));
}

}  // namespace annulus::testing
