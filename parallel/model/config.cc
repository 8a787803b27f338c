// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/config.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "parallel/model/gguf.h"

namespace annulus::parallel {
namespace {

using nlohmann::json;

// Positions and sizes are int32_t in plans and kernels, with room for padding values.
constexpr int64_t kMaxInteger = int64_t{1} << 30;

// One named number source (GGUF metadata or a JSON object); remembers the first error, so that a
// config is read in one go and checked once.
template <class Source>
struct Fields {
  Source source;
  absl::Status status;

  int32_t integer(const char* key, std::optional<int64_t> fallback = {}) {
    if (fallback && !source.has(key)) return static_cast<int32_t>(*fallback);
    const absl::StatusOr<int64_t> value = source.integer(key);
    if (!value.ok()) {
      status.Update(value.status());
    } else if (*value < 1 || *value > kMaxInteger) {
      status.Update(absl::InvalidArgumentError(absl::StrCat(
          source.label, ": ", "'", key, "' is ", *value, ", not in 1 to ", kMaxInteger)));
    } else {
      return static_cast<int32_t>(*value);
    }
    return 1;
  }
  double number(const char* key, std::optional<double> fallback = {}) {
    if (fallback && !source.has(key)) return *fallback;
    const absl::StatusOr<double> value = source.number(key);
    if (value.ok()) return *value;
    status.Update(value.status());
    return 1;
  }
};

struct GgufFields {
  const GgufFile& gguf;
  std::string label;

  static std::string full(const char* key) { return absl::StrCat("llama.", key); }
  bool has(const char* key) const { return gguf.has(full(key)); }
  absl::StatusOr<int64_t> integer(const char* key) const { return gguf.integer(full(key)); }
  absl::StatusOr<double> number(const char* key) const { return gguf.number(full(key)); }
};

struct JsonFields {
  const json& object;
  std::string label;

  // null means absent, as in the files of transformers.
  bool has(const char* key) const {
    const auto it = object.find(key);
    return it != object.end() && !it->is_null();
  }
  absl::StatusOr<int64_t> integer(const char* key) const {
    const auto it = object.find(key);
    if (it == object.end()) return missing(key);
    if (!it->is_number_integer()) return wrong(key, "an integer");
    if (it->is_number_unsigned() && it->get<uint64_t>() > static_cast<uint64_t>(kMaxInteger))
      return wrong(key, absl::StrCat("an integer up to ", kMaxInteger));
    return it->get<int64_t>();
  }
  absl::StatusOr<double> number(const char* key) const {
    const auto it = object.find(key);
    if (it == object.end()) return missing(key);
    if (!it->is_number()) return wrong(key, "a number");
    return it->get<double>();
  }
  absl::Status missing(const char* key) const {
    return absl::NotFoundError(absl::StrCat(label, ": ", "'", key, "'", " is missing"));
  }
  absl::Status wrong(const char* key, const std::string& wanted) const {
    return absl::InvalidArgumentError(absl::StrCat(label, ": ", "'", key, "'", " is not ", wanted));
  }
};

absl::Status refuse(const std::string& label, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(label, ": ", what));
}

absl::Status check_scaling(const RopeScaling& scaling) {
  const bool sane = std::isfinite(scaling.factor) && scaling.factor > 0 &&
                    std::isfinite(scaling.low_freq_factor) && scaling.low_freq_factor > 0 &&
                    std::isfinite(scaling.high_freq_factor) &&
                    scaling.high_freq_factor > scaling.low_freq_factor;
  if (!sane)
    return absl::InvalidArgumentError(
        "the RoPE scaling needs a positive factor and 0 < low_freq_factor < high_freq_factor");
  if (scaling.kind == RopeScaling::Kind::kLlama3 && scaling.original_context < 1)
    return absl::InvalidArgumentError("the llama3 RoPE scaling needs its original context length");
  return absl::OkStatus();
}

absl::Status apply(const ConfigOverrides& overrides, LlamaConfig& config) {
  config.context = config.trained_context;
  if (overrides.context) {
    if (*overrides.context < 1 || *overrides.context > kMaxInteger)
      return absl::InvalidArgumentError(
          absl::StrCat("--context ", *overrides.context, " is not in 1 to ", kMaxInteger));
    config.context = *overrides.context;
  }
  if (overrides.rope_theta) config.rope_theta = *overrides.rope_theta;
  if (overrides.rope_scaling.empty()) return absl::OkStatus();
  const absl::StatusOr<RopeScaling> scaling = parse_rope_scaling(overrides.rope_scaling);
  if (!scaling.ok()) return scaling.status();
  config.rope_scaling = *scaling;
  config.rope_divisors.clear();
  return absl::OkStatus();
}

}  // namespace

absl::Status check_config(const LlamaConfig& config, const std::string& label) {
  const auto bad = [&](const auto&... parts) { return refuse(label, absl::StrCat(parts...)); };
  // Message tags have ten bits for the layer; the head and the machine's measurement use two more.
  if (config.layers > 1022) return bad(config.layers, " layers are more than the 1022 supported");
  if (config.dim > 1 << 20 || config.ffn > 1 << 24 || config.vocab > 1 << 24)
    return bad("embedding ", config.dim, ", FFN ", config.ffn, " and vocabulary ", config.vocab,
               " are beyond any model");
  if (config.head_dim % 8 != 0 || config.head_dim > 256)
    return bad("head dimension ", config.head_dim, " is not a multiple of 8 up to 256");
  if (config.heads > 1 << 14 || config.heads % config.kv_heads != 0)
    return bad(config.heads, " query heads are not a multiple of ", config.kv_heads, " KV heads");
  if (!std::isfinite(config.rms_eps) || config.rms_eps <= 0 || config.rms_eps >= 1)
    return bad("RMS norm epsilon ", config.rms_eps, " is not between 0 and 1");
  if (!std::isfinite(config.rope_theta) || config.rope_theta < 1)
    return bad("RoPE theta ", config.rope_theta, " is not a number from 1");
  const absl::Status scaling = check_scaling(config.rope_scaling);
  return scaling.ok() ? scaling : refuse(label, std::string(scaling.message()));
}

namespace {

absl::Status read_gguf_scaling(const GgufFile& gguf, LlamaConfig& config) {
  const std::string& label = gguf.label();
  Fields<GgufFields> fields{{gguf, label}, {}};
  std::string_view type = fields.source.has("rope.scale_linear") ? "linear" : "none";
  if (fields.source.has("rope.scaling.type")) {
    const absl::StatusOr<std::string_view> given = gguf.string("llama.rope.scaling.type");
    if (!given.ok()) return given.status();
    type = *given;
  }
  if (type == "linear") {
    config.rope_scaling.kind = RopeScaling::Kind::kLinear;
    const bool old_key =
        !fields.source.has("rope.scaling.factor") && fields.source.has("rope.scale_linear");
    config.rope_scaling.factor =
        fields.number(old_key ? "rope.scale_linear" : "rope.scaling.factor");
  } else if (type != "none") {
    return refuse(label, absl::StrCat("RoPE scaling ", quote_name(type),
                                      " is not supported (none, linear and the rope_freqs of "
                                      "Llama 3 are); --rope-scaling replaces it"));
  }
  if (!fields.status.ok()) return fields.status;

  const GgufTensor* divisors = gguf.find_tensor("rope_freqs.weight");
  if (divisors == nullptr) return absl::OkStatus();
  const size_t half = static_cast<size_t>(config.head_dim / 2);
  if (divisors->type != 0 || divisors->data.size() != half * sizeof(float))
    return refuse(label, absl::StrCat("tensor 'rope_freqs.weight' is not ", half, " F32 numbers"));
  config.rope_divisors.resize(half);
  std::memcpy(config.rope_divisors.data(), divisors->data.data(), divisors->data.size());
  for (const float divisor : config.rope_divisors)
    if (!std::isfinite(divisor) || divisor <= 0)
      return refuse(label, "tensor 'rope_freqs.weight' holds a number that is not positive");
  return absl::OkStatus();
}

absl::Status read_json_scaling(const json& rope, const std::string& label, RopeScaling& scaling) {
  Fields<JsonFields> fields{{rope, absl::StrCat(label, ": rope scaling")}, {}};
  const char* key = fields.source.has("rope_type") ? "rope_type" : "type";
  std::string type = "default";
  if (fields.source.has(key)) {
    if (!rope[key].is_string()) return fields.source.wrong(key, "a string");
    type = rope[key].get<std::string>();
  }
  if (fields.number("partial_rotary_factor", 1.0) != 1.0)
    return refuse(label, "a partial_rotary_factor other than 1 is not supported");
  if (type == "linear") {
    scaling.kind = RopeScaling::Kind::kLinear;
    scaling.factor = fields.number("factor");
  } else if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::kLlama3;
    scaling.factor = fields.number("factor");
    scaling.low_freq_factor = fields.number("low_freq_factor");
    scaling.high_freq_factor = fields.number("high_freq_factor");
    scaling.original_context = fields.integer("original_max_position_embeddings");
  } else if (type != "default") {
    return refuse(label, absl::StrCat("RoPE scaling ", quote_name(type),
                                      " is not supported (default, linear and llama3 are); "
                                      "--rope-scaling replaces it"));
  }
  return fields.status;
}

// Whether config.json asks for something besides a plain Llama.
absl::Status refuse_variants(const json& root, const std::string& label) {
  const auto text = [&](const char* key) {
    const auto it = root.find(key);
    return it != root.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  std::string architecture;
  if (const auto it = root.find("architectures");
      it != root.end() && it->is_array() && !it->empty() && (*it)[0].is_string())
    architecture = (*it)[0].get<std::string>();
  const std::string model_type = text("model_type");
  if (architecture.empty() ? model_type != "llama" : architecture != "LlamaForCausalLM")
    return refuse(label, absl::StrCat("architecture ", quote_name(architecture), " (model_type ",
                                      quote_name(model_type),
                                      ") is not supported; Annulus runs LlamaForCausalLM"));
  if (const std::string act = text("hidden_act"); !act.empty() && act != "silu")
    return refuse(label,
                  absl::StrCat("hidden_act ", quote_name(act), " is not supported (silu is)"));
  for (const char* key : {"attention_bias", "mlp_bias", "rope_interleaved"})
    if (const auto it = root.find(key); it != root.end() && it->is_boolean() && it->get<bool>())
      return refuse(label, absl::StrCat("'", key, "': true is not supported"));
  // modules_to_not_convert is not read: the type of every tensor says whether it is F8.
  if (const auto it = root.find("quantization_config"); it != root.end() && !it->is_null()) {
    const auto method = it->is_object() ? it->find("quant_method") : it->end();
    if (!it->is_object() || method == it->end() || *method != "fbgemm_fp8")
      return refuse(label,
                    "a quantised checkpoint is not supported in this format (fbgemm_fp8 is); use "
                    "the F32, F16 or BF16 original, or a GGUF file");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RopeScaling> parse_rope_scaling(std::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(std::string(text), ':');
  std::vector<double> numbers(parts.size() - 1);
  bool readable = true;
  for (size_t i = 0; i < numbers.size(); ++i)
    readable = readable && absl::SimpleAtod(parts[i + 1], &numbers[i]);
  RopeScaling scaling;
  if (readable && parts[0] == "none" && numbers.empty()) return scaling;
  if (readable && parts[0] == "linear" && numbers.size() == 1) {
    scaling.kind = RopeScaling::Kind::kLinear;
    scaling.factor = numbers[0];
  } else if (readable && parts[0] == "llama3" && numbers.size() == 4 && numbers[3] >= 1 &&
             numbers[3] <= static_cast<double>(kMaxInteger)) {
    scaling = {RopeScaling::Kind::kLlama3, numbers[0], numbers[1], numbers[2],
               static_cast<int64_t>(numbers[3])};
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("RoPE scaling ", quote_name(text),
                     " is not 'none', 'linear:FACTOR' or 'llama3:FACTOR:LOW:HIGH:ORIGINAL_CONTEXT' "
                     "(for example llama3:8:1:4:8192)"));
  }
  if (const absl::Status status = check_scaling(scaling); !status.ok()) return status;
  return scaling;
}

absl::StatusOr<LlamaConfig> config_from_gguf(const GgufFile& gguf,
                                             const ConfigOverrides& overrides) {
  const absl::StatusOr<std::string_view> architecture = gguf.string("general.architecture");
  if (!architecture.ok()) return architecture.status();
  if (*architecture != "llama")
    return refuse(gguf.label(), absl::StrCat("architecture ", quote_name(*architecture),
                                             " is not supported; Annulus runs 'llama'"));
  Fields<GgufFields> fields{{gguf, gguf.label()}, {}};
  const auto refuse_if_above = [&](const char* key, int64_t limit, const std::string& what) {
    if (fields.source.has(key) && fields.source.integer(key).value_or(limit + 1) > limit)
      fields.status.Update(refuse(gguf.label(), what));
  };
  refuse_if_above("expert_count", 0, "a mixture of experts is not supported");
  LlamaConfig config;
  config.layers = fields.integer("block_count");
  config.trained_context = fields.integer("context_length");
  config.dim = fields.integer("embedding_length");
  config.ffn = fields.integer("feed_forward_length");
  config.heads = fields.integer("attention.head_count");
  config.kv_heads = fields.integer("attention.head_count_kv", config.heads);
  config.head_dim = fields.integer("attention.key_length", std::max(1, config.dim / config.heads));
  config.rms_eps = fields.number("attention.layer_norm_rms_epsilon");
  config.rope_theta = fields.number("rope.freq_base", 10000.0);
  const int32_t value_dim = fields.integer("attention.value_length", config.head_dim);
  const int32_t rotated = fields.integer("rope.dimension_count", config.head_dim);
  const GgufTensor* embedding = gguf.find_tensor("token_embd.weight");
  const int64_t rows = embedding != nullptr ? embedding->shape[0] : 0;
  config.vocab = rows > 0 && rows <= kMaxInteger ? fields.integer("vocab_size", rows)
                                                 : fields.integer("vocab_size");
  config.pairing = kernels::RopePairing::kAdjacent;
  config.tied_head = gguf.find_tensor("output.weight") == nullptr;
  if (!fields.status.ok()) return fields.status;
  if (value_dim != config.head_dim || rotated != config.head_dim)
    return refuse(gguf.label(), absl::StrCat("heads of ", config.head_dim, " with ", rotated,
                                             " rotated dimensions and values of ", value_dim,
                                             " are not supported: all three must be equal"));

  absl::Status status =
      overrides.rope_scaling.empty() ? read_gguf_scaling(gguf, config) : absl::OkStatus();
  if (status.ok()) status = apply(overrides, config);
  if (status.ok()) status = check_config(config, gguf.label());
  if (!status.ok()) return status;
  return config;
}

absl::StatusOr<LlamaConfig> config_from_json(std::string_view text, const std::string& label,
                                             const ConfigOverrides& overrides) {
  const json root = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return refuse(label, "not a JSON object");
  absl::Status status = refuse_variants(root, label);
  if (!status.ok()) return status;

  Fields<JsonFields> fields{{root, std::string(label)}, {}};
  LlamaConfig config;
  config.layers = fields.integer("num_hidden_layers");
  config.trained_context = fields.integer("max_position_embeddings", 2048);
  config.dim = fields.integer("hidden_size");
  config.ffn = fields.integer("intermediate_size");
  config.heads = fields.integer("num_attention_heads");
  config.kv_heads = fields.integer("num_key_value_heads", config.heads);
  config.head_dim = fields.integer("head_dim", std::max(1, config.dim / config.heads));
  config.vocab = fields.integer("vocab_size");
  config.rms_eps = fields.number("rms_norm_eps", 1e-6);
  config.rope_theta = fields.number("rope_theta", 10000.0);
  if (fields.number("partial_rotary_factor", 1.0) != 1.0)
    return refuse(label, "a partial_rotary_factor other than 1 is not supported");
  config.pairing = kernels::RopePairing::kHalves;
  if (fields.source.has("tie_word_embeddings")) {
    if (!root["tie_word_embeddings"].is_boolean())
      return fields.source.wrong("tie_word_embeddings", "true or false");
    config.tied_head = root["tie_word_embeddings"].get<bool>();
  }
  if (!fields.status.ok()) return fields.status;

  // Newer files keep theta and scaling together in rope_parameters.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!fields.source.has(key)) continue;
    const json& rope = root[key];
    if (!rope.is_object()) return fields.source.wrong(key, "an object");
    Fields<JsonFields> inner{{rope, absl::StrCat(label, ": ", key)}, {}};
    config.rope_theta = inner.number("rope_theta", config.rope_theta);
    config.rope_scaling = {};
    status = inner.status;
    if (overrides.rope_scaling.empty())
      status.Update(read_json_scaling(rope, label, config.rope_scaling));
    if (!status.ok()) return status;
  }
  status = apply(overrides, config);
  if (status.ok()) status = check_config(config, label);
  if (!status.ok()) return status;
  return config;
}

absl::StatusOr<std::optional<float>> f8_input_bound_from_json(std::string_view text,
                                                              const std::string& label) {
  constexpr const char* kPlace = "quantization_config";
  constexpr const char* kKey = "activation_scale_ub";
  const json root = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return refuse(label, "not a JSON object");
  const auto place = root.find(kPlace);
  if (place == root.end() || !place->is_object()) return std::nullopt;
  const JsonFields fields{*place, absl::StrCat(label, ": ", kPlace)};
  if (!fields.has(kKey)) return std::nullopt;
  const absl::StatusOr<double> value = fields.number(kKey);
  if (!value.ok()) return value.status();
  if (!(*value > 0 && *value <= static_cast<double>(std::numeric_limits<float>::max())))
    return fields.wrong(kKey, "above 0, as what bounds sizes must be");
  return static_cast<float>(*value);
}

std::string override_warning(const LlamaConfig& config, const ConfigOverrides& overrides) {
  std::vector<std::string> changes;
  if (overrides.context && *overrides.context > config.trained_context)
    changes.push_back(absl::StrCat("context ", *overrides.context, " instead of the trained ",
                                   config.trained_context));
  if (overrides.rope_theta) changes.push_back(absl::StrCat("RoPE theta ", *overrides.rope_theta));
  if (!overrides.rope_scaling.empty())
    changes.push_back(absl::StrCat("RoPE scaling ", overrides.rope_scaling));
  if (changes.empty()) return "";
  return absl::StrCat(config.name, ": ", absl::StrJoin(changes, ", "),
                      ": set by the operator, not by the model file; quality may suffer");
}

std::vector<int> valid_tp(const LlamaConfig& config) {
  std::vector<int> sizes;
  for (int tp = 1; tp <= config.kv_heads; ++tp)
    if (config.heads % tp == 0 && config.kv_heads % tp == 0 && config.ffn % tp == 0 &&
        config.vocab % tp == 0)
      sizes.push_back(tp);
  return sizes;
}

absl::Status check_tp(const LlamaConfig& config, int tp) {
  const std::vector<int> sizes = valid_tp(config);
  for (const int size : sizes)
    if (size == tp) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tensor parallelism ", tp, " does not divide ", config.name, " (", config.heads,
                   " query heads, ", config.kv_heads, " KV heads, FFN ", config.ffn,
                   ", vocabulary ", config.vocab, "); it can be ", absl::StrJoin(sizes, ", ")));
}

}  // namespace annulus::parallel
