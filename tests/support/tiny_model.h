// SPDX-License-Identifier: Apache-2.0
// Small Llama models with seeded random weights, written as GGUF files or Hugging Face folders, and
// the way to the real test model. The same TinyModel gives the same function in both formats (GGUF
// stores the rows of Q and K permuted; values are rounded to the format asked for). The vocabulary
// is byte-level without merges: 256 bytes, <|endoftext|>, <|im_start|>, <|im_end|>, then fillers.
// For tests only; failures to write abort.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/weight.h"
#include "parallel/model/config.h"

namespace annulus::testing {

struct TinyModel {
  int32_t layers = 2, dim = 64, heads = 4, kv_heads = 2, head_dim = 16, ffn = 128, vocab = 288;
  int64_t context = 4096;
  double rms_eps = 1e-5, rope_theta = 10000;
  parallel::RopeScaling rope_scaling;
  bool tied = true;
  kernels::WeightFormat matrices = kernels::WeightFormat::kF32;
  kernels::WeightFormat embedding = kernels::WeightFormat::kF32;  // and the head, if not tied
  // F8E4M3 only. As the published 405B has it: attention, and the FFNs of the first and last layer,
  // are BF16. And where the bound of inputs is written: in tensors and config.json, or in one.
  bool f8_as_published = false;
  float f8_bound = 1200;
  bool f8_bound_in_tensors = true, f8_bound_in_config = true;
  uint64_t seed = 1;
};

// The matrices of TinyModel in Hugging Face names and row order, before any rounding, [rows *
// cols]; norms are vectors around 1.
std::vector<float> tiny_tensor(const TinyModel& model, const std::string& hf_name, int64_t rows,
                               int64_t cols);

std::vector<std::byte> tiny_gguf(const TinyModel& model);
void write_gguf(const TinyModel& model, const std::string& path);

// config.json, tokenizer.json and safetensors (F32, F16 or BF16 as model.matrices says; embedding
// likewise; norms in the format of the matrices), in one file or several with an index. F8E4M3: as
// fbgemm_fp8 checkpoints have it, with scales of rows and norms in BF16.
void write_folder(const TinyModel& model, const std::string& directory, int shards = 1);
std::string tiny_config_json(const TinyModel& model);

struct NamedTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};
std::vector<std::byte> safetensors_bytes(std::span<const NamedTensor> tensors);

void write_file(const std::string& path, std::span<const std::byte> bytes);
void write_file(const std::string& path, std::string_view text);

// A new empty folder below the system's, removed at the end of the process.
std::string scratch_directory();

// $ANNULUS_MODEL, or SmolLM2 in the user's cache; NotFound says how to fetch it.
absl::StatusOr<std::string> test_model_path();

}  // namespace annulus::testing
