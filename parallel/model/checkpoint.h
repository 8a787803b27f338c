// SPDX-License-Identifier: Apache-2.0
// A model on disk, or generated: one view of GGUF files, Hugging Face folders and shapes. open()
// maps the files, reads the config and resolves every tensor of a Llama by role, so that afterwards
// nothing can be missing or misshapen; tensors that this engine would have to ignore (biases,
// experts) are refused. Sources are views of the mappings and live as long as the Checkpoint (moves
// included). Opening reads headers only and is cheap: the front end does it for config and
// tokenizer. Immutable, so safe to read from any thread. Errors: NotFound or InvalidArgument naming
// file and tensor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/weight.h"
#include "parallel/model/config.h"
#include "parallel/model/gguf.h"
#include "parallel/model/mapped_file.h"
#include "parallel/model/synthetic.h"

namespace annulus::parallel {

// Matrices are [out features, in features], in the file's format and row order.
struct LayerTensors {
  std::vector<float> attn_norm, ffn_norm;  // [dim]
  kernels::WeightSource q;                 // [heads * head_dim, dim]
  kernels::WeightSource k, v;              // [kv_heads * head_dim, dim]
  kernels::WeightSource o;                 // [dim, heads * head_dim]
  kernels::WeightSource gate, up;          // [ffn, dim]
  kernels::WeightSource down;              // [dim, ffn]
};

struct ModelTensors {
  kernels::WeightSource embedding, head;  // [vocab, dim]
  std::vector<float> output_norm;         // [dim]
  std::vector<LayerTensors> layers;
};

class Checkpoint {
 public:
  // path: a .gguf file, a folder with config.json and safetensors, a .safetensors file in such a
  // folder, a folder with exactly one .gguf file, or "synthetic:SHAPE" (synthetic.h).
  static absl::StatusOr<Checkpoint> open(const std::string& path,
                                         const ConfigOverrides& overrides = {});

  // A model that is elsewhere: config, and the shapes and formats of its matrices, without weights
  // (their data is null) nor norms. For a rank that is sent its weights. Errors: InvalidArgument.
  static absl::StatusOr<Checkpoint> from_outline(std::string_view outline);
  std::string outline() const;
  bool is_outline() const { return tensors_.embedding.data == nullptr; }
  bool is_generated() const { return generated_.has_value(); }

  const LlamaConfig& config() const { return config_; }
  const ModelTensors& tensors() const { return tensors_; }

  // Where the tokenizer is: GGUF metadata, or else (nullptr) the folder with tokenizer.json, or
  // nowhere (empty: a generated model).
  const GgufFile* gguf() const { return gguf_ ? &*gguf_ : nullptr; }
  const std::string& directory() const { return directory_; }

  // Stable over machines and versions: config, tensor directory and a sample of each tensor's
  // bytes. Workers prove with it that they hold the same model.
  uint64_t fingerprint() const { return fingerprint_; }

  int64_t file_bytes() const;  // of all files that hold tensors
  void drop_resident() const;  // see MappedFile
  // Whether the files lie on a network file system, which other hosts read too.
  bool is_shared() const;

 private:
  absl::Status load_gguf(MappedFile file, const ConfigOverrides& overrides);
  // single_file: the only safetensors file to read; empty = what the folder's index says.
  absl::Status load_folder(const std::string& directory, const std::string& single_file,
                           const ConfigOverrides& overrides);
  absl::Status generate(std::string_view shape, const ConfigOverrides& overrides);

  std::vector<MappedFile> files_;
  std::optional<GgufFile> gguf_;
  std::optional<SyntheticWeights> generated_;
  std::string directory_;
  LlamaConfig config_;
  ModelTensors tensors_;
  uint64_t fingerprint_ = 0;
};

}  // namespace annulus::parallel
