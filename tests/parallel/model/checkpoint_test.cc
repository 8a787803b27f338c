// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>

#include "tests/support/encode_weights.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using kernels::WeightFormat;
using kernels::WeightSource;
using testing::TinyModel;

// Rows and columns are multiples of 256, so that every format fits.
TinyModel wide(WeightFormat matrices, WeightFormat embedding, bool tied) {
  TinyModel model;
  model.dim = 256;
  model.heads = 8;
  model.kv_heads = 2;
  model.head_dim = 32;
  model.ffn = 512;
  model.tied = tied;
  model.matrices = matrices;
  model.embedding = embedding;
  return model;
}

std::vector<float> dequantised(const WeightSource& source) {
  std::vector<float> out(static_cast<size_t>(source.rows * source.cols));
  for (int64_t r = 0; r < source.rows; ++r) dequantise_row(source, r, out.data() + r * source.cols);
  return out;
}

// What a row-wise encoding of the model's own numbers gives back.
std::vector<float> expected(const TinyModel& model, const std::string& name, WeightFormat format,
                            int64_t rows, int64_t cols) {
  const std::vector<float> values = testing::tiny_tensor(model, name, rows, cols);
  std::vector<std::byte> bytes;
  testing::encode_row(format, values, bytes);
  const kernels::WeightBlock block = kernels::block_of(format);
  return dequantised({format, bytes.data(), rows, cols, 0, cols / block.weights * block.bytes});
}

// Largest step of a format over numbers below 0.2 in size, as tiny_tensor makes them here.
float tolerance(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return 0;
    case WeightFormat::kF16: return 0x1p-14f;
    case WeightFormat::kBF16: return 0x1p-11f;
    case WeightFormat::kQ8_0: return 0.2f / 127;
    case WeightFormat::kQ6_K: return 0.2f / 31;
    default: return 0.2f / 7;
  }
}

std::string written(const TinyModel& model) {
  const std::string path = testing::scratch_directory() + "/tiny.gguf";
  testing::write_gguf(model, path);
  return path;
}

class CheckpointOfFormat : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(CheckpointOfFormat, GgufRoundTrip) {
  for (const bool tied : {false, true}) {
    const TinyModel model = wide(GetParam(), GetParam(), tied);
    const auto checkpoint = Checkpoint::open(written(model));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const LlamaConfig& config = checkpoint->config();
    EXPECT_EQ(config.name, "tiny");
    EXPECT_EQ(config.layers, model.layers);
    EXPECT_EQ(config.tied_head, tied);
    const ModelTensors& tensors = checkpoint->tensors();
    ASSERT_EQ(tensors.layers.size(), 2u);
    EXPECT_EQ(dequantised(tensors.embedding),
              expected(model, "model.embed_tokens.weight", GetParam(), model.vocab, model.dim));
    EXPECT_EQ(dequantised(tensors.head),
              expected(model, tied ? "model.embed_tokens.weight" : "lm_head.weight", GetParam(),
                       model.vocab, model.dim));
    EXPECT_EQ(tensors.output_norm, testing::tiny_tensor(model, "model.norm.weight", 0, model.dim));
    const LayerTensors& last = tensors.layers[1];
    EXPECT_EQ(last.attn_norm,
              testing::tiny_tensor(model, "model.layers.1.input_layernorm.weight", 0, model.dim));
    const std::vector<float> down = dequantised(last.down);
    const std::string name = "model.layers.1.mlp.down_proj.weight";
    EXPECT_EQ(down, expected(model, name, GetParam(), model.dim, model.ffn));
    const std::vector<float> original = testing::tiny_tensor(model, name, model.dim, model.ffn);
    for (size_t i = 0; i < down.size(); ++i)
      ASSERT_NEAR(down[i], original[i], tolerance(GetParam())) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Gguf, CheckpointOfFormat,
                         ::testing::Values(WeightFormat::kF32, WeightFormat::kF16,
                                           WeightFormat::kBF16, WeightFormat::kQ8_0,
                                           WeightFormat::kQ4_0, WeightFormat::kQ4_1,
                                           WeightFormat::kQ6_K));

// Row i of the first half of a head and row i of the second are neighbours in GGUF.
std::vector<float> interleaved(const std::vector<float>& rows, int64_t cols, int64_t head_dim) {
  std::vector<float> out(rows.size());
  for (int64_t r = 0; r < static_cast<int64_t>(rows.size()) / cols; ++r) {
    const int64_t head = r / head_dim * head_dim, i = r % head_dim, half = head_dim / 2;
    const int64_t to = head + (i < half ? 2 * i : 2 * (i - half) + 1);
    std::copy_n(rows.begin() + r * cols, cols, out.begin() + to * cols);
  }
  return out;
}

TEST(Checkpoint, GgufAndFolderHoldTheSameModel) {
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16}) {
    for (const bool tied : {false, true}) {
      const TinyModel model = wide(format, WeightFormat::kBF16, tied);
      const std::string folder = testing::scratch_directory();
      testing::write_folder(model, folder);
      const auto a = Checkpoint::open(written(model)), b = Checkpoint::open(folder + "/");
      ASSERT_TRUE(a.ok()) << a.status();
      ASSERT_TRUE(b.ok()) << b.status();
      EXPECT_EQ(a->config().pairing, kernels::RopePairing::kAdjacent);
      EXPECT_EQ(b->config().pairing, kernels::RopePairing::kHalves);
      EXPECT_NE(a->gguf(), nullptr);
      EXPECT_EQ(b->gguf(), nullptr);
      EXPECT_EQ(b->directory(), folder + "/");
      EXPECT_EQ(b->config().name, std::filesystem::path(folder).filename().string());
      const ModelTensors &x = a->tensors(), &y = b->tensors();
      EXPECT_EQ(dequantised(x.embedding), dequantised(y.embedding));
      EXPECT_EQ(dequantised(x.head), dequantised(y.head));
      EXPECT_EQ(x.output_norm, y.output_norm);
      for (size_t i = 0; i < x.layers.size(); ++i) {
        const LayerTensors &p = x.layers[i], &q = y.layers[i];
        EXPECT_EQ(p.attn_norm, q.attn_norm);
        EXPECT_EQ(p.ffn_norm, q.ffn_norm);
        EXPECT_EQ(dequantised(p.q), interleaved(dequantised(q.q), model.dim, model.head_dim));
        EXPECT_EQ(dequantised(p.k), interleaved(dequantised(q.k), model.dim, model.head_dim));
        EXPECT_EQ(dequantised(p.v), dequantised(q.v));
        EXPECT_EQ(dequantised(p.o), dequantised(q.o));
        EXPECT_EQ(dequantised(p.gate), dequantised(q.gate));
        EXPECT_EQ(dequantised(p.up), dequantised(q.up));
        EXPECT_EQ(dequantised(p.down), dequantised(q.down));
      }
    }
  }
}

// A weight of a row lies within half a step of its F8 neighbours: 2^-4 of itself, or 2^-10 below
// the smallest normal number, times the row's scale.
TEST(Checkpoint, Fp8MatricesAreTimesTheScalesOfTheirRows) {
  const TinyModel model = wide(WeightFormat::kF8E4M3, WeightFormat::kBF16, false);
  const std::string folder = testing::scratch_directory();
  testing::write_folder(model, folder, 2);
  const auto checkpoint = Checkpoint::open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelTensors& tensors = checkpoint->tensors();
  EXPECT_EQ(tensors.embedding.format, WeightFormat::kBF16);
  for (int i = 0; i < model.layers; ++i) {
    const LayerTensors& layer = tensors.layers[static_cast<size_t>(i)];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    for (const auto& [name, source] : {std::pair{"self_attn.k_proj", layer.k},
                                       {"self_attn.o_proj", layer.o},
                                       {"mlp.up_proj", layer.up},
                                       {"mlp.down_proj", layer.down}}) {
      EXPECT_EQ(source.format, WeightFormat::kF8E4M3);
      EXPECT_EQ(source.input_bound, 1200);
      const std::vector<float> want =
          testing::tiny_tensor(model, prefix + name + ".weight", source.rows, source.cols);
      const std::vector<float> got = dequantised(source);
      for (int64_t r = 0; r < source.rows; ++r) {
        const auto row = std::span(want).subspan(static_cast<size_t>(r * source.cols),
                                                 static_cast<size_t>(source.cols));
        float largest = 0;
        for (const float x : row) largest = std::max(largest, std::abs(x));
        for (size_t c = 0; c < row.size(); ++c) {
          ASSERT_NEAR(got[static_cast<size_t>(r * source.cols) + c], row[c],
                      std::max(std::abs(row[c]) * 0x1.001p-4f, largest / 448 * 0x1p-10f))
              << prefix << name << " row " << r;
        }
      }
      // Views of rows and columns keep to their scales, held in either precision.
      const WeightSource view = source.slice_rows(source.rows / 2, 64).slice_cols(64, 128);
      const std::vector<float> values = dequantised(view);
      EXPECT_EQ(values[0], got[static_cast<size_t>(source.rows / 2 * source.cols + 64)]);
      const WeightSource same = {
          WeightFormat::kF32, reinterpret_cast<const std::byte*>(values.data()), 64, 128, 0, 512};
      for (const auto precision : {kernels::Precision::kDefault, kernels::Precision::kF32}) {
        const auto x = kernels::PackedMatrix::pack({&view, 1}, precision);
        const auto y = kernels::PackedMatrix::pack({&same, 1}, precision);
        EXPECT_EQ(std::memcmp(x.data(), y.data(), static_cast<size_t>(x.bytes())), 0);
      }
    }
  }
}

// The mix of the published 405B, with the bound of inputs in tensors, in config.json, or in both.
TEST(Checkpoint, Fp8InputsAreBoundedByTensorsOrTheConfig) {
  TinyModel model = wide(WeightFormat::kF8E4M3, WeightFormat::kBF16, false);
  model.layers = 4;
  model.f8_as_published = true;
  model.f8_bound = 3.5f;
  const auto opened = [&](bool tensors, bool config, const std::string& folder) {
    model.f8_bound_in_tensors = tensors;
    model.f8_bound_in_config = config;
    testing::write_folder(model, folder, 2);
    return Checkpoint::open(folder);
  };
  const std::string folder = testing::scratch_directory();
  std::set<uint64_t> fingerprints;
  for (const auto& [tensors, config] : {std::pair{true, true}, {true, false}, {false, true}}) {
    const auto checkpoint = opened(tensors, config, folder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    fingerprints.insert(checkpoint->fingerprint());
    const auto& layers = checkpoint->tensors().layers;
    for (size_t i = 0; i < layers.size(); ++i) {
      EXPECT_EQ(layers[i].o.format, WeightFormat::kBF16);
      for (const WeightSource* ffn : {&layers[i].gate, &layers[i].up, &layers[i].down}) {
        const bool f8 = i > 0 && i + 1 < layers.size();
        EXPECT_EQ(ffn->format, f8 ? WeightFormat::kF8E4M3 : WeightFormat::kBF16);
        if (f8) {
          EXPECT_EQ(ffn->input_bound, 3.5f);
        }
      }
    }
  }
  EXPECT_EQ(fingerprints.size(), 1u);
  model.f8_bound = 4;
  EXPECT_FALSE(fingerprints.contains(opened(false, true, folder)->fingerprint()));
  const auto without = opened(false, false, folder);
  EXPECT_NE(without.status().message().find(
                "'model.layers.1.mlp.gate_proj.input_scale_ub' is missing, and config.json has no "
                "'activation_scale_ub'"),
            absl::string_view::npos)
      << without.status();
  // A tensor goes first.
  (void)opened(true, true, folder);
  model.f8_bound = 5;
  testing::write_file(folder + "/config.json", testing::tiny_config_json(model));
  EXPECT_EQ(Checkpoint::open(folder)->tensors().layers[1].up.input_bound, 4);
}

TEST(Checkpoint, Fp8MatricesNeedTheirScales) {
  const TinyModel model = wide(WeightFormat::kF8E4M3, WeightFormat::kBF16, false);
  const std::string folder = testing::scratch_directory();
  testing::write_folder(model, folder);
  const std::string path = folder + "/model.safetensors";
  const auto with = [&](std::string_view from, std::string_view to) {
    const auto file = MappedFile::open(path).value();
    std::string text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    text.replace(text.find(from), from.size(), to);
    const std::string changed = testing::scratch_directory();
    std::filesystem::copy(folder, changed,
                          std::filesystem::copy_options::overwrite_existing |
                              std::filesystem::copy_options::recursive);
    testing::write_file(changed + "/model.safetensors", text);
    return std::string(Checkpoint::open(changed).status().message());
  };
  EXPECT_NE(with("layers.1.mlp.up_proj.weight_scale", "layers.1.mlp.up_proj.weight_scalp")
                .find("'model.layers.1.mlp.up_proj.weight_scale' is missing"),
            std::string::npos);
  EXPECT_NE(with("layers.1.mlp.up_proj.input_scale_ub", "layers.1.mlp.up_proj.input_scale_uc")
                .find("input_scale_uc' has no place"),
            std::string::npos);
}

TEST(Checkpoint, ShardedFolderEqualsASingleFile) {
  const TinyModel model;
  const std::string one = testing::scratch_directory(), three = testing::scratch_directory();
  testing::write_folder(model, one);
  testing::write_folder(model, three, 3);
  const auto a = Checkpoint::open(one), b = Checkpoint::open(three),
             c = Checkpoint::open(one + "/model.safetensors");
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
  EXPECT_EQ(a->fingerprint(), c->fingerprint());
  for (size_t i = 0; i < a->tensors().layers.size(); ++i)
    EXPECT_EQ(dequantised(a->tensors().layers[i].down), dequantised(b->tensors().layers[i].down));
  std::filesystem::remove(three + "/model-00002-of-00003.safetensors");
  EXPECT_NE(Checkpoint::open(three).status().message().find("the download is incomplete"),
            absl::string_view::npos);
}

TEST(Checkpoint, FingerprintTellsModelsApart) {
  const TinyModel model;
  const std::string path = written(model);
  const uint64_t same = Checkpoint::open(path)->fingerprint();
  EXPECT_EQ(same, Checkpoint::open(written(model))->fingerprint());
  // Fixed for ever: workers of different builds compare it.
  EXPECT_EQ(same, 0x102e9a5d2c300ff0u) << std::hex << same;
  TinyModel other = model;
  other.seed = 2;
  EXPECT_NE(same, Checkpoint::open(written(other))->fingerprint());
  other = model;
  other.rope_theta = 20000;
  EXPECT_NE(same, Checkpoint::open(written(other))->fingerprint());
  EXPECT_NE(
      same,
      Checkpoint::open(path, {.context = 99, .rope_theta = {}, .rope_scaling = ""})->fingerprint());
  EXPECT_NE(same,
            Checkpoint::open(path, {.context = {}, .rope_theta = {}, .rope_scaling = "linear:2"})
                ->fingerprint());
}

TEST(Checkpoint, SourcesSurviveAMove) {
  auto opened = Checkpoint::open(written(TinyModel()));
  ASSERT_TRUE(opened.ok());
  const std::vector<float> before = dequantised(opened->tensors().embedding);
  const Checkpoint moved = *std::move(opened);
  moved.drop_resident();
  EXPECT_EQ(dequantised(moved.tensors().embedding), before);
  EXPECT_EQ(*moved.gguf()->string("general.name"), "tiny");
}

// Changes bytes of a tiny GGUF file and says what opening it reports.
std::string error_after(const std::function<void(std::vector<std::byte>&)>& change,
                        const TinyModel& model = {}) {
  std::vector<std::byte> bytes = testing::tiny_gguf(model);
  change(bytes);
  const std::string path = testing::scratch_directory() + "/m.gguf";
  testing::write_file(path, bytes);
  return std::string(Checkpoint::open(path).status().message());
}
std::byte* find(std::vector<std::byte>& bytes, const std::string& name) {
  const auto* text = reinterpret_cast<const std::byte*>(name.data());
  const auto it = std::search(bytes.begin(), bytes.end(), text, text + name.size());
  EXPECT_NE(it, bytes.end()) << name;
  return &*it;
}
void rename(std::vector<std::byte>& bytes, const std::string& from, const std::string& to) {
  ASSERT_EQ(from.size(), to.size());
  std::memcpy(find(bytes, from), to.data(), to.size());
}

TEST(Checkpoint, ErrorsNameTheTensor) {
  const auto expect = [](const std::string& error, const char* problem) {
    EXPECT_NE(error.find(problem), std::string::npos) << error;
    EXPECT_NE(error.find("m.gguf: "), std::string::npos) << error;
  };
  expect(error_after([](auto& b) { rename(b, "blk.1.ffn_up.weight", "blk.7.ffn_up.weight"); }),
         "tensor 'blk.1.ffn_up.weight' is missing");
  expect(error_after([](auto& b) { rename(b, "blk.1.attn_k.weight", "blk.1.attn_k.lora_a"); }),
         "tensor 'blk.1.attn_k.weight' is missing");
  expect(error_after([](auto& b) {
           std::byte* dims = find(b, "blk.0.ffn_gate.weight") + 21 + 4;  // [64, 128] to [128, 64]
           std::swap_ranges(dims, dims + 8, dims + 8);
         }),
         "tensor 'blk.0.ffn_gate.weight' is [64, 128], but the config asks for [128, 64]");
  expect(error_after([](auto& b) {
           *(find(b, "blk.0.ffn_gate.weight") + 21 + 20) =
               std::byte{26};  // same size, another type
         }),
         "tensor 'blk.0.ffn_gate.weight' is I32, which is not supported");
}

TEST(Checkpoint, RefusesTensorsItWouldIgnore) {
  testing::TinyModel model;
  const std::string folder = testing::scratch_directory();
  testing::write_folder(model, folder);
  const auto rewrite = [&](const char* extra) {
    const auto file = MappedFile::open(folder + "/model.safetensors");
    std::vector<std::byte> bytes(file->bytes().begin(), file->bytes().end());
    rename(bytes, "lm_head.weight", extra);
    testing::write_file(folder + "/changed.safetensors", bytes);
    return std::string(Checkpoint::open(folder + "/changed.safetensors").status().message());
  };
  model.tied = false;
  testing::write_folder(model, folder);
  model.tied = true;
  testing::write_file(folder + "/config.json", testing::tiny_config_json(model));
  EXPECT_EQ(rewrite("lm_head.weight"), "");  // tied: the head in the file is not used
  EXPECT_NE(rewrite("lm_head.bias__").find("tensor 'lm_head.bias__' has no place"),
            std::string::npos);
}

TEST(Checkpoint, ErrorsOfPathsSayWhatToDo) {
  const std::string folder = testing::scratch_directory();
  const auto error = [](const std::string& path) {
    return std::string(Checkpoint::open(path).status().message());
  };
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::open(folder + "/none.gguf").status()));
  EXPECT_NE(error(folder).find("name a model file or a Hugging Face folder"), std::string::npos);
  testing::write_gguf({}, folder + "/a.gguf");
  EXPECT_TRUE(Checkpoint::open(folder).ok());
  testing::write_gguf({}, folder + "/b.gguf");
  EXPECT_NE(error(folder).find("several .gguf files"), std::string::npos);
  testing::write_file(folder + "/c.gguf", std::string_view("version https://git-lfs.github.com/"));
  EXPECT_NE(error(folder + "/c.gguf").find("Git LFS pointer"), std::string::npos);
  testing::write_file(folder + "/d.gguf", std::string_view("PK"));
  EXPECT_NE(error(folder + "/d.gguf").find("neither a GGUF"), std::string::npos);
  testing::write_file(folder + "/e.gguf", std::string_view(""));
  EXPECT_NE(error(folder + "/e.gguf").find("the file is empty"), std::string::npos);
  EXPECT_NE(error("/dev/null").find("not a regular file"), std::string::npos);
}

}  // namespace
}  // namespace annulus::parallel
