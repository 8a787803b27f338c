// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/checkpoint.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "parallel/model/safetensors.h"

namespace annulus::parallel {
namespace {

namespace fs = std::filesystem;
using kernels::WeightSource;

struct RawTensor {
  std::string type;
  std::optional<kernels::WeightFormat> format;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
  int64_t row_stride_bytes = 0;  // 0: rows follow each other
};
using Directory = std::map<std::string, RawTensor>;

struct TensorNames {
  const char *embedding, *output_norm, *head, *layer_prefix;
  const char *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
};
constexpr TensorNames kGgufNames = {
    "token_embd.weight",  "output_norm.weight", "output.weight",   "blk.",
    "attn_norm.weight",   "attn_q.weight",      "attn_k.weight",   "attn_v.weight",
    "attn_output.weight", "ffn_norm.weight",    "ffn_gate.weight", "ffn_up.weight",
    "ffn_down.weight"};
constexpr TensorNames kFolderNames = {"model.embed_tokens.weight",
                                      "model.norm.weight",
                                      "lm_head.weight",
                                      "model.layers.",
                                      "input_layernorm.weight",
                                      "self_attn.q_proj.weight",
                                      "self_attn.k_proj.weight",
                                      "self_attn.v_proj.weight",
                                      "self_attn.o_proj.weight",
                                      "post_attention_layernorm.weight",
                                      "mlp.gate_proj.weight",
                                      "mlp.up_proj.weight",
                                      "mlp.down_proj.weight"};

// Of an F8 matrix: what bounds the rows of inputs (fbgemm_fp8).
std::string input_bound_name(const std::string& matrix) {
  return absl::StrCat(absl::StripSuffix(matrix, "weight"), "input_scale_ub");
}

// Looks tensors up by name, checks type and shape, and remembers the first error and what was used.
class Resolver {
 public:
  Resolver(const Directory& directory, const std::string& label)
      : directory_(directory), label_(label) {}

  // F8 matrices have NAME_scale, [rows, 1] in F32, beside them, and input_scale_ub, [1]: what a GPU
  // that rounds inputs to F8 takes for the most that a row of them holds. A matrix is F8 if its own
  // type says so, whatever modules_to_not_convert lists.
  WeightSource matrix(const std::string& name, int64_t rows, int64_t cols) {
    WeightSource weights = source(name, {rows, cols}, rows, cols);
    if (!status_.ok() || weights.format != kernels::WeightFormat::kF8E4M3) return weights;
    const WeightSource scales = source(name + "_scale", {rows, 1}, rows, 1);
    if (!status_.ok()) return {};
    if (scales.format != kernels::WeightFormat::kF32) {
      status_ = absl::InvalidArgumentError(absl::StrCat(
          label_, ": tensor ", quote_name(name + "_scale"), " is not F32, as F8 weights need it"));
      return {};
    }
    weights.row_scales = scales.data;
    const std::string bound = input_bound_name(name);
    if (!directory_.contains(bound)) {
      // No default: answers on a GPU depend on it, and a fbgemm_fp8 file always states it (vLLM
      // refuses one without it; transformers writes what it has, 1200 unless it was told another).
      status_ = absl::InvalidArgumentError(absl::StrCat(
          label_, ": tensor ", quote_name(bound), " is missing, and config.json has no ",
          "'activation_scale_ub' in its quantization_config; put there what bounds the inputs of "
          "F8 matrices (1200 is what transformers takes)"));
      return {};
    }
    const std::vector<float> value = vector(bound, 1);
    if (!status_.ok()) return {};
    weights.input_bound = value[0];
    if (!(weights.input_bound > 0)) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(label_, ": tensor ", quote_name(bound), " is ", weights.input_bound,
                       ", but it bounds sizes: it must be above 0"));
      return {};
    }
    return weights;
  }
  std::vector<float> vector(const std::string& name, int64_t count) {
    const WeightSource row = source(name, {count}, 1, count);
    std::vector<float> values;
    if (status_.ok() && row.format == kernels::WeightFormat::kF8E4M3)
      status_ = absl::InvalidArgumentError(absl::StrCat(label_, ": tensor ", quote_name(name),
                                                        " is F8_E4M3, which norms cannot be"));
    if (!status_.ok()) return values;
    values.resize(static_cast<size_t>(count));
    kernels::dequantise_row(row, 0, values.data());
    return values;
  }

  // A tensor that would be left out could change the answers, so only known harmless ones may.
  absl::Status finish() const {
    if (!status_.ok()) return status_;
    for (const auto& [name, tensor] : directory_)
      if (!used_.contains(name) && name != "rope_freqs.weight" && name != "lm_head.weight" &&
          !absl::EndsWith(name, ".rotary_emb.inv_freq"))
        return absl::InvalidArgumentError(
            absl::StrCat(label_, ": tensor ", quote_name(name),
                         " has no place in a plain Llama (biases, experts and adapters are not "
                         "supported)"));
    return status_;
  }

 private:
  WeightSource source(const std::string& name, const std::vector<int64_t>& shape, int64_t rows,
                      int64_t cols) {
    if (!status_.ok()) return {};
    const auto it = directory_.find(name);
    if (it == directory_.end()) {
      status_ = absl::NotFoundError(absl::StrCat(label_, ": tensor ", quote_name(name),
                                                 " is missing; fetch the model again"));
      return {};
    }
    const RawTensor& tensor = it->second;
    used_.insert(name);
    if (!tensor.format) {
      status_ = absl::InvalidArgumentError(absl::StrCat(
          label_, ": tensor ", quote_name(name), " is ", tensor.type,
          ", which is not supported (F32, F16, BF16, F8_E4M3, Q8_0, Q4_0, Q4_1 and Q6_K are); "
          "quantise the model to one of these, for example Q8_0"));
      return {};
    }
    if (tensor.shape != shape) {
      status_ = absl::InvalidArgumentError(absl::StrCat(
          label_, ": tensor ", quote_name(name), " is [", absl::StrJoin(tensor.shape, ", "),
          "], but the config asks for [", absl::StrJoin(shape, ", "), "]"));
      return {};
    }
    const kernels::WeightBlock block = kernels::block_of(*tensor.format);
    return {.format = *tensor.format,
            .data = tensor.data.data(),
            .rows = rows,
            .cols = cols,
            .first_col = 0,
            .row_stride_bytes = tensor.row_stride_bytes > 0 ? tensor.row_stride_bytes
                                                            : cols / block.weights * block.bytes};
  }

  const Directory& directory_;
  std::string label_;
  std::set<std::string> used_;
  absl::Status status_;
};

// FNV-1a, finished with a multiply-shift mix: simple enough to stay the same for ever.
class StableHash {
 public:
  void bytes(std::span<const std::byte> data) {
    for (const std::byte b : data) {
      state_ ^= static_cast<uint64_t>(b);
      state_ *= 0x100000001b3u;
    }
  }
  void integer(uint64_t value) {
    for (int shift = 0; shift < 64; shift += 8) {
      const std::byte b{static_cast<uint8_t>(value >> shift)};
      bytes({&b, 1});
    }
  }
  void integer(int64_t value) { integer(static_cast<uint64_t>(value)); }
  void number(double value) { integer(std::bit_cast<uint64_t>(value)); }
  void text(std::string_view value) {
    integer(uint64_t{value.size()});
    bytes(std::as_bytes(std::span(value.data(), value.size())));
  }
  uint64_t finish() const { return (state_ ^ (state_ >> 32)) * 0x9e3779b97f4a7c15u; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

uint64_t fingerprint_of(const LlamaConfig& config, const Directory& directory) {
  StableHash hash;
  for (const int64_t value :
       {int64_t{config.layers}, int64_t{config.dim}, int64_t{config.heads},
        int64_t{config.kv_heads}, int64_t{config.head_dim}, int64_t{config.ffn},
        int64_t{config.vocab}, config.trained_context, config.context,
        static_cast<int64_t>(config.rope_scaling.kind), config.rope_scaling.original_context,
        static_cast<int64_t>(config.pairing), int64_t{config.tied_head ? 1 : 0}})
    hash.integer(value);
  for (const double value :
       {config.rms_eps, config.rope_theta, config.rope_scaling.factor,
        config.rope_scaling.low_freq_factor, config.rope_scaling.high_freq_factor})
    hash.number(value);
  for (const float divisor : config.rope_divisors) hash.number(static_cast<double>(divisor));

  constexpr size_t kSampleBytes = 64;
  for (const auto& [name, tensor] : directory) {
    hash.text(name);
    hash.text(tensor.type);
    for (const int64_t size : tensor.shape) hash.integer(size);
    hash.integer(uint64_t{tensor.data.size()});
    const size_t sample = std::min(kSampleBytes, tensor.data.size());
    const size_t last = tensor.data.size() - sample;
    for (const size_t at : {size_t{0}, last / 2, last}) hash.bytes(tensor.data.subspan(at, sample));
  }
  return hash.finish();
}

absl::StatusOr<ModelTensors> resolve(const LlamaConfig& config, const Directory& directory,
                                     const TensorNames& names, const std::string& label) {
  Resolver resolver(directory, label);
  const int64_t dim = config.dim, ffn = config.ffn;
  const int64_t q_rows = int64_t{config.heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.kv_heads} * config.head_dim;
  ModelTensors all;
  all.embedding = resolver.matrix(names.embedding, config.vocab, dim);
  all.output_norm = resolver.vector(names.output_norm, dim);
  all.head = config.tied_head ? all.embedding : resolver.matrix(names.head, config.vocab, dim);
  for (int32_t i = 0; i < config.layers; ++i) {
    const std::string prefix = absl::StrCat(names.layer_prefix, i, ".");
    LayerTensors& layer = all.layers.emplace_back();
    layer.attn_norm = resolver.vector(prefix + names.attn_norm, dim);
    layer.q = resolver.matrix(prefix + names.q, q_rows, dim);
    layer.k = resolver.matrix(prefix + names.k, kv_rows, dim);
    layer.v = resolver.matrix(prefix + names.v, kv_rows, dim);
    layer.o = resolver.matrix(prefix + names.o, dim, q_rows);
    layer.ffn_norm = resolver.vector(prefix + names.ffn_norm, dim);
    layer.gate = resolver.matrix(prefix + names.gate, ffn, dim);
    layer.up = resolver.matrix(prefix + names.up, ffn, dim);
    layer.down = resolver.matrix(prefix + names.down, dim, ffn);
  }
  const absl::Status status = resolver.finish();
  if (!status.ok()) return status;
  return all;
}

// Files that transformers writes have the bound of inputs in config.json alone: there
// input_scale_ub is a buffer with persistent=False, filled from activation_scale_ub at load
// (FbgemmFp8Linear in its integrations/fbgemm_fp8.py). It is put where other files have it, so that
// both are the same model, with one fingerprint. A tensor that is there goes first: it is what the
// matrix was written with. `bound` outlives the directory.
void state_input_bounds(const float& bound, Directory& directory) {
  std::vector<std::string> missing;
  for (const auto& [name, tensor] : directory)
    if (tensor.format == kernels::WeightFormat::kF8E4M3 && absl::EndsWith(name, ".weight"))
      missing.push_back(input_bound_name(name));
  for (const std::string& name : missing)
    directory.try_emplace(
        name,
        RawTensor{"F32", kernels::WeightFormat::kF32, {1}, std::as_bytes(std::span(&bound, 1))});
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// The single .gguf file of a folder.
absl::StatusOr<std::string> only_gguf_in(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> found;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == ".gguf") found.push_back(it->path().string());
  if (error) return absl::PermissionDeniedError(absl::StrCat(directory, ": ", error.message()));
  if (found.size() == 1) return found[0];
  return absl::InvalidArgumentError(
      absl::StrCat(directory, ": holds no config.json and ",
                   found.empty() ? "no .gguf file; name a model file or a Hugging Face folder"
                                 : "several .gguf files; name one of them"));
}

}  // namespace

absl::StatusOr<Checkpoint> Checkpoint::open(const std::string& path,
                                            const ConfigOverrides& overrides) {
  Checkpoint checkpoint;
  if (std::string_view(path).starts_with(kSyntheticPrefix)) {
    const absl::Status status =
        checkpoint.generate(std::string_view(path).substr(kSyntheticPrefix.size()), overrides);
    if (!status.ok()) return status;
    return checkpoint;
  }
  std::error_code error;
  std::string file_path = path;
  if (fs::is_directory(path, error)) {
    if (fs::exists(path + "/config.json", error)) {
      const absl::Status status = checkpoint.load_folder(path, "", overrides);
      if (!status.ok()) return status;
      return checkpoint;
    }
    absl::StatusOr<std::string> only = only_gguf_in(path);
    if (!only.ok()) return only.status();
    file_path = *std::move(only);
  }
  absl::StatusOr<MappedFile> file = MappedFile::open(file_path);
  if (!file.ok()) return file.status();
  absl::Status status;
  if (text_of(*file).starts_with("GGUF")) {
    status = checkpoint.load_gguf(*std::move(file), overrides);
  } else if (text_of(*file).starts_with("version https://git-lfs")) {
    status = absl::InvalidArgumentError(
        absl::StrCat(file_path, ": only a Git LFS pointer; fetch the file itself (git lfs pull)"));
  } else if (fs::path(file_path).extension() == ".safetensors") {
    const std::string parent = fs::path(file_path).parent_path().string();
    status = checkpoint.load_folder(parent.empty() ? "." : parent, file_path, overrides);
  } else {
    status = absl::InvalidArgumentError(
        absl::StrCat(file_path, ": neither a GGUF nor a .safetensors file"));
  }
  if (!status.ok()) return status;
  return checkpoint;
}

absl::Status Checkpoint::load_gguf(MappedFile file, const ConfigOverrides& overrides) {
  absl::StatusOr<GgufFile> gguf = GgufFile::parse(file.bytes(), file.path());
  if (!gguf.ok()) return gguf.status();
  if (gguf->integer("split.count").value_or(1) > 1)
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": one part of a split model; join the parts with llama-gguf-split --merge"));
  absl::StatusOr<LlamaConfig> config = config_from_gguf(*gguf, overrides);
  if (!config.ok()) return config.status();
  Directory directory;
  for (const GgufTensor& tensor : gguf->tensors())
    directory[std::string(tensor.name)] = {
        gguf_type_name(tensor.type), gguf_weight_format(tensor.type), tensor.shape, tensor.data};
  absl::StatusOr<ModelTensors> tensors = resolve(*config, directory, kGgufNames, file.path());
  if (!tensors.ok()) return tensors.status();
  config_ = *std::move(config);
  config_.name = fs::path(file.path()).stem().string();
  tensors_ = *std::move(tensors);
  fingerprint_ = fingerprint_of(config_, directory);
  gguf_ = *std::move(gguf);
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::load_folder(const std::string& directory, const std::string& single_file,
                                     const ConfigOverrides& overrides) {
  const absl::StatusOr<MappedFile> json = MappedFile::open(directory + "/config.json");
  if (!json.ok()) return json.status();
  constexpr size_t kMaxConfigBytes = size_t{1} << 20;
  if (json->bytes().size() > kMaxConfigBytes)
    return absl::InvalidArgumentError(absl::StrCat(json->path(), ": too large for a config"));
  absl::StatusOr<LlamaConfig> config = config_from_json(text_of(*json), json->path(), overrides);
  if (!config.ok()) return config.status();
  absl::StatusOr<SafetensorsFolder> folder =
      single_file.empty() ? open_safetensors_folder(directory) : open_safetensors_file(single_file);
  if (!folder.ok()) return folder.status();
  Directory raw;
  for (auto& [name, tensor] : folder->tensors)
    raw[name] = {tensor.dtype, safetensors_weight_format(tensor.dtype), tensor.shape, tensor.data};
  const absl::StatusOr<std::optional<float>> bound =
      f8_input_bound_from_json(text_of(*json), json->path());
  if (!bound.ok()) return bound.status();
  if (*bound) state_input_bounds(**bound, raw);
  absl::StatusOr<ModelTensors> tensors = resolve(*config, raw, kFolderNames, directory);
  if (!tensors.ok()) return tensors.status();
  config_ = *std::move(config);
  // "." and a trailing slash have no file name of their own.
  std::error_code error;
  config_.name = fs::canonical(directory, error).filename().string();
  tensors_ = *std::move(tensors);
  fingerprint_ = fingerprint_of(config_, raw);
  directory_ = directory;
  files_ = std::move(folder->files);
  return absl::OkStatus();
}

absl::Status Checkpoint::generate(std::string_view shape, const ConfigOverrides& overrides) {
  absl::StatusOr<LlamaConfig> config = synthetic_config(shape, overrides);
  if (!config.ok()) return config.status();
  const LlamaConfig& c = *config;
  const bool f8 = synthetic_has_f8(shape);
  const SyntheticWeights& weights = generated_.emplace(c, f8);
  Directory raw;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    raw[name] = {"BF16",
                 kernels::WeightFormat::kBF16,
                 {rows, cols},
                 weights.matrix(name, rows, cols),
                 SyntheticWeights::kRowStrideBytes};
  };
  const auto matrix_f8 = [&](const std::string& name, int64_t rows, int64_t cols) {
    raw[name] = {"F8_E4M3",
                 kernels::WeightFormat::kF8E4M3,
                 {rows, cols},
                 weights.matrix_f8(name, rows, cols),
                 SyntheticWeights::kRowStrideBytes};
    raw[name + "_scale"] = {
        "F32", kernels::WeightFormat::kF32, {rows, 1}, weights.row_scales(rows), 0};
    raw[input_bound_name(name)] = {
        "F32", kernels::WeightFormat::kF32, {1}, weights.input_bound(), 0};
  };
  const auto norm = [&](const std::string& name) {
    raw[name] = {"BF16", kernels::WeightFormat::kBF16, {c.dim}, weights.ones(c.dim), 0};
  };
  const int64_t q_rows = int64_t{c.heads} * c.head_dim, kv_rows = int64_t{c.kv_heads} * c.head_dim;
  const TensorNames& names = kFolderNames;
  matrix(names.embedding, c.vocab, c.dim);
  if (!c.tied_head) matrix(names.head, c.vocab, c.dim);
  norm(names.output_norm);
  for (int32_t i = 0; i < c.layers; ++i) {
    const std::string prefix = absl::StrCat(names.layer_prefix, i, ".");
    norm(prefix + names.attn_norm);
    norm(prefix + names.ffn_norm);
    matrix(prefix + names.q, q_rows, c.dim);
    matrix(prefix + names.k, kv_rows, c.dim);
    matrix(prefix + names.v, kv_rows, c.dim);
    matrix(prefix + names.o, c.dim, q_rows);
    const auto ffn = [&](const std::string& name, int64_t rows, int64_t cols) {
      f8&& i > 0 && i + 1 < c.layers ? matrix_f8(prefix + name, rows, cols)
                                     : matrix(prefix + name, rows, cols);
    };
    ffn(names.gate, c.ffn, c.dim);
    ffn(names.up, c.ffn, c.dim);
    ffn(names.down, c.dim, c.ffn);
  }
  absl::StatusOr<ModelTensors> tensors = resolve(c, raw, names, c.name);
  if (!tensors.ok()) return tensors.status();
  tensors_ = *std::move(tensors);
  fingerprint_ = fingerprint_of(c, raw);
  config_ = *std::move(config);
  return absl::OkStatus();
}

int64_t Checkpoint::file_bytes() const {
  int64_t total = 0;
  for (const MappedFile& file : files_) total += static_cast<int64_t>(file.bytes().size());
  return total;
}

bool Checkpoint::is_shared() const {
  return !files_.empty() && on_network(files_.front().path());
}

void Checkpoint::drop_resident() const {
  for (const MappedFile& file : files_) file.drop_resident();
}

}  // namespace annulus::parallel
