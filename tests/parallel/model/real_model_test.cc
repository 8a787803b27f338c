// SPDX-License-Identifier: Apache-2.0
// The real SmolLM2 file: its published shape, and that all of it can be sliced and packed.
#include <gtest/gtest.h>

#include <map>

#include "kernels/cpu/queue.h"
#include "parallel/model/checkpoint.h"
#include "parallel/model/rope.h"
#include "parallel/model/weights.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

class RealModel : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto path = testing::test_model_path();
    ASSERT_TRUE(path.ok()) << path.status().message();
    auto opened = Checkpoint::open(*path);
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint = *std::move(opened);
  }
  Checkpoint checkpoint;
};

TEST_F(RealModel, HasThePublishedShape) {
  const LlamaConfig& config = checkpoint.config();
  EXPECT_EQ(config.name, "SmolLM2-135M-Instruct.Q4_1");
  EXPECT_EQ(config.layers, 30);
  EXPECT_EQ(config.dim, 576);
  EXPECT_EQ(config.heads, 9);
  EXPECT_EQ(config.kv_heads, 3);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.ffn, 1536);
  EXPECT_EQ(config.vocab, 49152);
  EXPECT_EQ(config.trained_context, 8192);
  EXPECT_EQ(config.rope_theta, 100000);
  EXPECT_EQ(static_cast<float>(config.rms_eps), 1e-5f);
  EXPECT_EQ(config.rope_scaling, RopeScaling{});
  EXPECT_TRUE(config.rope_divisors.empty());
  EXPECT_TRUE(config.tied_head);
  EXPECT_EQ(valid_tp(config), (std::vector<int>{1, 3}));
  EXPECT_EQ(checkpoint.file_bytes(), 98362432);
}

TEST_F(RealModel, HasThePublishedTensorsAndTokenizer) {
  const GgufFile* gguf = checkpoint.gguf();
  ASSERT_NE(gguf, nullptr);
  EXPECT_EQ(gguf->version(), 3u);
  std::map<std::string, int> types;
  for (const GgufTensor& tensor : gguf->tensors()) ++types[gguf_type_name(tensor.type)];
  EXPECT_EQ(types, (std::map<std::string, int>{{"F32", 61}, {"Q4_1", 210}, {"Q8_0", 1}}));
  EXPECT_EQ(gguf->find_tensor("output.weight"), nullptr);
  EXPECT_EQ(gguf->strings("tokenizer.ggml.tokens")->size(), 49152u);
  EXPECT_EQ(gguf->strings("tokenizer.ggml.merges")->size(), 48900u);
  EXPECT_EQ(*gguf->string("tokenizer.ggml.pre"), "smollm");
  EXPECT_EQ(*gguf->integer("tokenizer.ggml.bos_token_id"), 1);
  EXPECT_FALSE(*gguf->boolean("tokenizer.ggml.add_bos_token"));
  EXPECT_EQ(*gguf->string("general.license"), "apache-2.0");
}

TEST_F(RealModel, PacksAThirdOfIt) {
  kernels::CpuQueue queue(1);
  const auto weights = load_weights(queue, checkpoint, 1, 3, kernels::Precision::kDefault);
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->layers.size(), 30u);
  const LayerWeights<kernels::CpuQueue>& layer = weights->layers[29];
  EXPECT_EQ(layer.qkv.n(), 3 * 64 + 64 + 64);
  EXPECT_EQ(layer.qkv.k(), 576);
  EXPECT_EQ(layer.o.n(), 576);
  EXPECT_EQ(layer.o.k(), 192);
  EXPECT_EQ(layer.gate_up.n(), 2 * 512);
  EXPECT_EQ(layer.down.k(), 512);
  EXPECT_EQ(layer.down.format(), kernels::WeightFormat::kQ4_1);
  EXPECT_EQ(weights->head.n(), 16384);
  EXPECT_EQ(weights->head.format(), kernels::WeightFormat::kQ8_0);
  // 106.2 M weights at 5 bits and 28.3 M at 8.5 bits, a third of each, and the norms.
  EXPECT_NEAR(static_cast<double>(weights->bytes), (106.2e6 * 5 + 28.3e6 * 8.5) / 8 / 3 + 0.14e6,
              0.5e6);
}

}  // namespace
}  // namespace annulus::parallel
