// SPDX-License-Identifier: Apache-2.0
// The shape and numbers of a Llama model, read from GGUF metadata or a Hugging Face config.json and
// checked: what this engine cannot run exactly (other architectures, experts, biases, unknown RoPE
// scalings) is refused with InvalidArgument naming the file, what was found and what is supported.
// Pure. Used by checkpoint, weights, llama, rank and the front end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace annulus::parallel {

class GgufFile;

struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1;            // linear, llama3
  double low_freq_factor = 1;   // llama3: wavelengths above original_context / this are divided
  double high_freq_factor = 4;  // llama3: wavelengths below original_context / this are kept
  int64_t original_context = 0;

  bool operator==(const RopeScaling&) const = default;
};

struct LlamaConfig {
  std::string name;
  int32_t layers = 0, dim = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0;
  int64_t trained_context = 0;  // tokens, as the file says
  int64_t context = 0;          // tokens served: trained_context unless overridden
  double rms_eps = 0;
  double rope_theta = 0;
  RopeScaling rope_scaling;
  std::vector<float> rope_divisors;  // of frequency i, besides rope_scaling: GGUF's rope_freqs
  kernels::RopePairing pairing = kernels::RopePairing::kHalves;
  bool tied_head = false;  // logits use the embedding table

  bool operator==(const LlamaConfig&) const = default;
};

// What the operator changes: --context, --rope-theta, --rope-scaling ("none", "linear:4",
// "llama3:FACTOR:LOW:HIGH:ORIGINAL_CONTEXT"). A scaling given here replaces the file's altogether.
struct ConfigOverrides {
  std::optional<int64_t> context;
  std::optional<double> rope_theta;
  std::string rope_scaling;
};

absl::StatusOr<LlamaConfig> config_from_gguf(const GgufFile& gguf,
                                             const ConfigOverrides& overrides = {});
// json: the text of config.json; label names it in errors.
absl::StatusOr<LlamaConfig> config_from_json(std::string_view json, const std::string& label,
                                             const ConfigOverrides& overrides = {});

// quantization_config.activation_scale_ub of config.json: what bounds the rows of inputs of F8
// matrices that have no tensor of their own for it. Nothing where it is absent or null.
absl::StatusOr<std::optional<float>> f8_input_bound_from_json(std::string_view json,
                                                              const std::string& label);

// Whether this engine can run it; sizes are positive. label begins the error.
absl::Status check_config(const LlamaConfig& config, const std::string& label);

absl::StatusOr<RopeScaling> parse_rope_scaling(std::string_view text);

// One line for the log if the overrides lead away from how the model was trained, else empty.
std::string override_warning(const LlamaConfig& config, const ConfigOverrides& overrides);

// Tensor-parallel sizes that divide query heads, KV heads, FFN width and vocabulary, ascending.
std::vector<int> valid_tp(const LlamaConfig& config);
absl::Status check_tp(const LlamaConfig& config, int tp);

}  // namespace annulus::parallel
