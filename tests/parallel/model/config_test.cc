// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/config.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "parallel/model/gguf.h"
#include "tests/support/encode_weights.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using nlohmann::json;
using Kind = RopeScaling::Kind;

// SmolLM2's own config.json, as published.
constexpr const char* kSmolLm2 = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
  "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
  "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
  "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "use_cache": true, "vocab_size": 49152})";

absl::StatusOr<LlamaConfig> parse(const json& root, const ConfigOverrides& overrides = {}) {
  return config_from_json(root.dump(), "config.json", overrides);
}
json with(const char* key, const json& value) {
  json root = json::parse(kSmolLm2);
  root[key] = value;
  return root;
}
std::string error_of(const json& root) {
  return std::string(parse(root).status().message());
}

TEST(Config, BoundOfF8Inputs) {
  const auto read = [](const json& quantization) {
    return f8_input_bound_from_json(with("quantization_config", quantization).dump(), "c.json");
  };
  EXPECT_EQ(*read({{"activation_scale_ub", 1200.5}}), 1200.5f);
  EXPECT_EQ(*read({{"activation_scale_ub", nullptr}}), std::nullopt);
  EXPECT_EQ(*read(json::object()), std::nullopt);
  EXPECT_EQ(*f8_input_bound_from_json(kSmolLm2, "c.json"), std::nullopt);
  for (const json& bad : {json(0), json(-1.0), json(1e300), json("1200"), json::array({1})})
    EXPECT_NE(read({{"activation_scale_ub", bad}})
                  .status()
                  .message()
                  .find("c.json: quantization_config: 'activation_scale_ub' is not"),
              absl::string_view::npos)
        << bad;
  EXPECT_FALSE(f8_input_bound_from_json("[", "c.json").ok());
}

TEST(Config, ReadsSmolLm2) {
  const auto config = config_from_json(kSmolLm2, "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->layers, 30);
  EXPECT_EQ(config->dim, 576);
  EXPECT_EQ(config->heads, 9);
  EXPECT_EQ(config->kv_heads, 3);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->ffn, 1536);
  EXPECT_EQ(config->vocab, 49152);
  EXPECT_EQ(config->trained_context, 8192);
  EXPECT_EQ(config->context, 8192);
  EXPECT_EQ(config->rms_eps, 1e-5);
  EXPECT_EQ(config->rope_theta, 100000);
  EXPECT_EQ(config->rope_scaling, RopeScaling{});
  EXPECT_EQ(config->pairing, kernels::RopePairing::kHalves);
  EXPECT_TRUE(config->tied_head);
}

TEST(Config, DefaultsOfAbsentKeys) {
  json root = json::parse(kSmolLm2);
  for (const char* key : {"num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling",
                          "max_position_embeddings", "tie_word_embeddings", "hidden_act"})
    root.erase(key);
  const auto config = parse(root);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_heads, 9);
  EXPECT_EQ(config->rms_eps, 1e-6);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_EQ(config->trained_context, 2048);
  EXPECT_FALSE(config->tied_head);
  EXPECT_EQ(parse(with("head_dim", 128))->head_dim, 128);
  EXPECT_EQ(parse(with("head_dim", nullptr))->head_dim, 64);
}

TEST(Config, ReadsRopeScalings) {
  const json llama3 = {{"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192},
                       {"rope_type", "llama3"}};
  const RopeScaling expected = {Kind::kLlama3, 8, 1, 4, 8192};
  EXPECT_EQ(parse(with("rope_scaling", llama3))->rope_scaling, expected);
  EXPECT_EQ(parse(with("rope_scaling", {{"type", "linear"}, {"factor", 2}}))->rope_scaling,
            (RopeScaling{Kind::kLinear, 2, 1, 4, 0}));
  EXPECT_EQ(parse(with("rope_scaling", {{"rope_type", "default"}}))->rope_scaling, RopeScaling{});
  // As newer files write it: theta and scaling in one object, none at the top.
  json newer = json::parse(kSmolLm2);
  newer.erase("rope_theta");
  newer.erase("rope_scaling");
  newer["rope_parameters"] = llama3;
  newer["rope_parameters"]["rope_theta"] = 500000.0;
  const auto config = parse(newer);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_theta, 500000);
  EXPECT_EQ(config->rope_scaling, expected);

  EXPECT_NE(error_of(with("rope_scaling", {{"type", "yarn"}, {"factor", 2}})).find("'yarn'"),
            std::string::npos);
  json incomplete = llama3;
  incomplete.erase("low_freq_factor");
  EXPECT_NE(error_of(with("rope_scaling", incomplete)).find("'low_freq_factor' is missing"),
            std::string::npos);
  json equal = llama3;
  equal["low_freq_factor"] = 4.0;
  EXPECT_NE(error_of(with("rope_scaling", equal)).find("low_freq_factor < high_freq_factor"),
            std::string::npos);
}

TEST(Config, RefusesWhatIsNotAPlainLlama) {
  EXPECT_EQ(error_of(with("architectures", {"Qwen2ForCausalLM"})),
            "config.json: architecture 'Qwen2ForCausalLM' (model_type 'llama') is not supported; "
            "Annulus runs LlamaForCausalLM");
  const auto expect = [](const char* key, const json& value, const char* problem) {
    const std::string error = error_of(with(key, value));
    EXPECT_NE(error.find(problem), std::string::npos) << key << ": " << error;
  };
  expect("attention_bias", true, "'attention_bias': true is not supported");
  expect("mlp_bias", true, "'mlp_bias': true is not supported");
  expect("rope_interleaved", true, "'rope_interleaved': true is not supported");
  expect("hidden_act", "gelu", "hidden_act 'gelu' is not supported");
  expect("quantization_config", {{"bits", 4}}, "quantised checkpoint is not supported");
  expect("quantization_config", {{"quant_method", "gptq"}}, "(fbgemm_fp8 is)");
  expect("quantization_config", "fbgemm_fp8", "quantised checkpoint is not supported");
  expect("partial_rotary_factor", 0.5, "partial_rotary_factor");
  expect("num_key_value_heads", 2, "9 query heads are not a multiple of 2 KV heads");
  expect("num_attention_heads", 0, "'num_attention_heads' is 0");
  expect("num_hidden_layers", -3, "'num_hidden_layers' is -3");
  expect("num_hidden_layers", 1 << 20, "layers are more than the 1022 supported");
  expect("vocab_size", uint64_t{1} << 63, "'vocab_size' is not an integer up to");
  expect("hidden_size", "576", "'hidden_size' is not an integer");
  expect("hidden_size", 576.5, "'hidden_size' is not an integer");
  expect("head_dim", 63, "head dimension 63");
  expect("head_dim", 100, "not a multiple of 8");
  expect("rms_norm_eps", 0, "epsilon 0");
  expect("rope_theta", 0, "theta 0");
  expect("rope_theta", "big", "'rope_theta' is not a number");
  expect("tie_word_embeddings", 1, "'tie_word_embeddings' is not true or false");
  expect("rope_scaling", 3, "'rope_scaling' is not an object");
  json missing = json::parse(kSmolLm2);
  missing.erase("hidden_size");
  EXPECT_EQ(error_of(missing), "config.json: 'hidden_size' is missing");
  EXPECT_FALSE(config_from_json("", "config.json").ok());
  EXPECT_FALSE(config_from_json("[1]", "config.json").ok());
  EXPECT_FALSE(config_from_json(std::string(1 << 19, '['), "config.json").ok());
}

// GGUF metadata of the smallest legal model, changed by the caller.
std::vector<std::byte> gguf_with(const std::function<void(testing::GgufWriter&)>& change,
                                 bool complete = true) {
  testing::GgufWriter out;
  out.string("general.architecture", "llama");
  if (complete) out.integer("llama.block_count", 1);
  out.integer("llama.context_length", 100);
  out.integer("llama.embedding_length", 64);
  out.integer("llama.feed_forward_length", 128);
  out.integer("llama.attention.head_count", 4);
  out.number("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  out.tensor("token_embd.weight", 0, {4, 64}, std::vector<std::byte>(4 * 64 * 4));
  change(out);
  return out.finish();
}
absl::StatusOr<LlamaConfig> parse_gguf(const std::vector<std::byte>& bytes,
                                       const ConfigOverrides& overrides = {}) {
  const auto gguf = GgufFile::parse(bytes, "m.gguf");
  if (!gguf.ok()) return gguf.status();
  return config_from_gguf(*gguf, overrides);
}

TEST(Config, ReadsGgufMetadataAndDefaults) {
  const auto config = parse_gguf(gguf_with([](auto&) {}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_heads, 4);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->vocab, 4);  // rows of the embedding
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_EQ(config->pairing, kernels::RopePairing::kAdjacent);
  EXPECT_TRUE(config->tied_head);
  const auto older = parse_gguf(
      gguf_with([](testing::GgufWriter& out) { out.number("llama.rope.scale_linear", 2); }));
  ASSERT_TRUE(older.ok()) << older.status();
  EXPECT_EQ(older->rope_scaling, (RopeScaling{Kind::kLinear, 2, 1, 4, 0}));
  const auto linear = parse_gguf(gguf_with([](testing::GgufWriter& out) {
    out.string("llama.rope.scaling.type", "linear");
    out.number("llama.rope.scaling.factor", 4);
  }));
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->rope_scaling, (RopeScaling{Kind::kLinear, 4, 1, 4, 0}));
}

TEST(Config, RefusesGgufFilesOfOtherModels) {
  const auto expect = [](const std::function<void(testing::GgufWriter&)>& change,
                         const char* problem) {
    const std::string error(parse_gguf(gguf_with(change)).status().message());
    EXPECT_NE(error.find(problem), std::string::npos) << error;
    EXPECT_EQ(error.find("m.gguf: "), 0u) << error;
  };
  using W = testing::GgufWriter;
  expect([](W& out) { out.integer("llama.expert_count", 8); }, "mixture of experts");
  expect([](W& out) { out.integer("llama.rope.dimension_count", 8); }, "8 rotated dimensions");
  expect([](W& out) { out.integer("llama.attention.value_length", 8); }, "values of 8");
  expect([](W& out) { out.string("llama.rope.scaling.type", "yarn"); }, "RoPE scaling 'yarn'");
  expect([](W& out) { out.string("llama.rope.scaling.type", "linear"); },
         "'llama.rope.scaling.factor' is missing");
}

TEST(Config, GgufErrorsNameKeyAndArchitecture) {
  EXPECT_EQ(parse_gguf(gguf_with([](auto&) {}, /*complete=*/false)).status().message(),
            "m.gguf: metadata key 'llama.block_count' is missing");
  testing::GgufWriter other;
  other.string("general.architecture", "qwen2");
  EXPECT_EQ(parse_gguf(other.finish()).status().message(),
            "m.gguf: architecture 'qwen2' is not supported; Annulus runs 'llama'");
  const auto divisors = [](std::vector<float> values) {
    return parse_gguf(gguf_with([&](testing::GgufWriter& out) {
             std::vector<std::byte> data;
             testing::encode_row(kernels::WeightFormat::kF32, values, data);
             const auto count = static_cast<int64_t>(values.size());
             out.tensor("rope_freqs.weight", 0, {count}, data);
           }))
        .status();
  };
  EXPECT_TRUE(divisors(std::vector<float>(8, 1.0f)).ok());
  EXPECT_NE(divisors(std::vector<float>(7, 1.0f)).message().find("is not 8 F32 numbers"),
            absl::string_view::npos);
  EXPECT_NE(divisors(std::vector<float>(8, 0.0f)).message().find("not positive"),
            absl::string_view::npos);
}

TEST(Config, OverridesReplaceTheFile) {
  const json yarn = with("rope_scaling", {{"type", "yarn"}, {"factor", 2}});
  const ConfigOverrides overrides = {
      .context = 1 << 20, .rope_theta = 5e5, .rope_scaling = "llama3:8:1:4:8192"};
  const auto config = parse(yarn, overrides);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->trained_context, 8192);
  EXPECT_EQ(config->context, 1 << 20);
  EXPECT_EQ(config->rope_theta, 5e5);
  EXPECT_EQ(config->rope_scaling, (RopeScaling{Kind::kLlama3, 8, 1, 4, 8192}));
  const std::string warning = override_warning(*config, overrides);
  for (const char* part : {"context 1048576", "trained 8192", "theta 500000", "llama3:8:1:4:8192"})
    EXPECT_NE(warning.find(part), std::string::npos) << warning;
  EXPECT_EQ(override_warning(*config, {}), "");
  EXPECT_EQ(override_warning(*config, {.context = 100, .rope_theta = {}, .rope_scaling = ""}), "");

  std::vector<std::byte> divisors;
  testing::encode_row(kernels::WeightFormat::kF32, std::vector<float>(8, 2.0f), divisors);
  const auto gguf = gguf_with(
      [&](testing::GgufWriter& out) { out.tensor("rope_freqs.weight", 0, {8}, divisors); });
  EXPECT_EQ(parse_gguf(gguf)->rope_divisors.size(), 8u);
  const ConfigOverrides linear = {.context = {}, .rope_theta = {}, .rope_scaling = "linear:2"};
  EXPECT_TRUE(parse_gguf(gguf, linear)->rope_divisors.empty());
}

TEST(Config, RefusesBadOverrides) {
  for (const char* text : {"linear", "linear:", "linear:x", "linear:0", "linear:-1", "linear:nan",
                           "linear:inf", "llama3:8:1:4", "llama3:8:4:1:8192", "llama3:8:1:4:0",
                           "llama3:8:1:4:1e300", "yarn:4", "none:1", ":", "linear:4:4"})
    EXPECT_FALSE(parse_rope_scaling(text).ok()) << text;
  EXPECT_EQ(*parse_rope_scaling("none"), RopeScaling{});
  const json root = json::parse(kSmolLm2);
  for (const int64_t context : {int64_t{0}, int64_t{-5}, int64_t{1} << 40})
    EXPECT_NE(parse(root, {.context = context, .rope_theta = {}, .rope_scaling = ""})
                  .status()
                  .message()
                  .find("--context"),
              absl::string_view::npos);
  EXPECT_FALSE(parse(root, {.context = {}, .rope_theta = -1.0, .rope_scaling = ""}).ok());
}

TEST(Config, TensorParallelSizes) {
  LlamaConfig config = *config_from_json(kSmolLm2, "config.json");
  config.name = "SmolLM2";
  EXPECT_EQ(valid_tp(config), (std::vector<int>{1, 3}));
  EXPECT_TRUE(check_tp(config, 1).ok());
  EXPECT_TRUE(check_tp(config, 3).ok());
  EXPECT_EQ(check_tp(config, 2).message(),
            "tensor parallelism 2 does not divide SmolLM2 (9 query heads, 3 KV heads, FFN 1536, "
            "vocabulary 49152); it can be 1, 3");
  EXPECT_FALSE(check_tp(config, 0).ok());
  EXPECT_FALSE(check_tp(config, -3).ok());
  config.heads = 32;
  config.kv_heads = 8;
  EXPECT_EQ(valid_tp(config), (std::vector<int>{1, 2, 4, 8}));
}

}  // namespace
}  // namespace annulus::parallel
