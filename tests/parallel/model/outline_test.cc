// SPDX-License-Identifier: Apache-2.0
// A model without its weights, as it goes to a rank that has no file.
#include <gtest/gtest.h>

#include <random>

#include "parallel/model/checkpoint.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

Checkpoint tiny(const ConfigOverrides& overrides = {}) {
  testing::TinyModel model;
  model.matrices = kernels::WeightFormat::kQ8_0;
  model.dim = 64;
  const std::string path = testing::scratch_directory() + "/tiny.gguf";
  testing::write_gguf(model, path);
  return Checkpoint::open(path, overrides).value();
}

void expect_shape_of(const kernels::WeightSource& got, const kernels::WeightSource& want) {
  EXPECT_EQ(got.data, nullptr);
  EXPECT_EQ(got.format, want.format);
  EXPECT_EQ(got.rows, want.rows);
  EXPECT_EQ(got.cols, want.cols);
  EXPECT_EQ(got.row_stride_bytes, want.row_stride_bytes);
  EXPECT_EQ(got.input_bound, want.input_bound);
}

TEST(Outline, SaysEverythingButTheWeights) {
  const Checkpoint file = tiny({.context = 777, .rope_theta = 5e5, .rope_scaling = "linear:4"});
  EXPECT_FALSE(file.is_outline());
  const auto outline = Checkpoint::from_outline(file.outline());
  ASSERT_TRUE(outline.ok()) << outline.status();
  EXPECT_TRUE(outline->is_outline());
  EXPECT_EQ(outline->config(), file.config());
  EXPECT_EQ(outline->fingerprint(), file.fingerprint());
  EXPECT_EQ(outline->outline(), file.outline());
  const ModelTensors &got = outline->tensors(), &want = file.tensors();
  expect_shape_of(got.embedding, want.embedding);
  expect_shape_of(got.head, want.head);
  ASSERT_EQ(got.layers.size(), want.layers.size());
  for (size_t i = 0; i < want.layers.size(); ++i) {
    for (const auto matrix :
         {&LayerTensors::q, &LayerTensors::k, &LayerTensors::v, &LayerTensors::o,
          &LayerTensors::gate, &LayerTensors::up, &LayerTensors::down}) {
      expect_shape_of(got.layers[i].*matrix, want.layers[i].*matrix);
    }
  }
}

TEST(Outline, BytesThatAreNoneAreRefused) {
  const std::string good = tiny().outline();
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(Checkpoint::from_outline(good.substr(0, length)).ok()) << length;
  }
  EXPECT_FALSE(Checkpoint::from_outline(good + '\0').ok());
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (int change = 0; change < 3; ++change) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    const auto outline = Checkpoint::from_outline(bytes);  // may be another model; never a crash
    if (outline.ok()) {
      EXPECT_TRUE(check_config(outline->config(), "it").ok());
    }
  }
}

}  // namespace
}  // namespace annulus::parallel
