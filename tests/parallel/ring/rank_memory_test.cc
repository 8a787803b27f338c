// SPDX-License-Identifier: Apache-2.0
// The plan of a rank's memory against what the engine holds.
#include "parallel/rank_memory.h"

#include <gtest/gtest.h>

#include "parallel/kv_store.h"
#include "parallel/rank.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using kernels::CpuQueue;
using kernels::Precision;
using kernels::WeightFormat;
using testing::TinyModel;

TEST(RankMemory, IsWhatTheEngineHolds) {
  CpuQueue queue(1, kernels::CpuIsa::kPortable);
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kQ8_0}) {
    TinyModel model;
    model.matrices = model.embedding = format;
    model.tied = format == WeightFormat::kF32;
    const std::string path = testing::scratch_directory() + "/model.gguf";
    testing::write_gguf(model, path);
    const auto checkpoint = Checkpoint::open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const Precision precision : {Precision::kDefault, Precision::kF32}) {
      for (const int tp : {1, 2}) {
        MemoryQuestion question;
        question.topology = {tp, 3};
        question.context = 1000;
        question.precision = precision;
        question.page_tokens = 16;
        const RankMemory plan = rank_memory(*checkpoint, question);
        const auto weights = load_weights(queue, *checkpoint, tp - 1, tp, precision);
        ASSERT_TRUE(weights.ok()) << weights.status();
        EXPECT_EQ(plan.weight_bytes, weights->bytes);
        const AttentionShape shape = attention_shape(checkpoint->config(), {tp, 3}, precision);
        const KvStore<CpuQueue> store(queue, {shape.dtype, shape.kv_heads, shape.head_dim, 16},
                                      shape.layers, default_kv_rows(1000, 3, 16));
        EXPECT_EQ(plan.kv_bytes, store.capacity_rows() * shape.kv_row_bytes() * shape.layers);
      }
    }
  }
}

// A context of 1,000,000 tokens of Llama 405B in BF16, by hand: 126 layers of 2 * 8 / 8 heads of
// 128 values of 2 bytes are 64,512 bytes a token and rank.
TEST(RankMemory, OfA405B) {
  const auto checkpoint = Checkpoint::open("synthetic:405B");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  MemoryQuestion question;
  question.topology = {8, 16};
  question.context = 1000000;
  question.gpu = true;
  const RankMemory plan = rank_memory(*checkpoint, question);
  EXPECT_NEAR(static_cast<double>(plan.weight_bytes), (405.85e9 + 7 * 128256 * 16384.0) * 2 / 8,
              1e9);  // the embedding is whole on every rank
  const double rows = 1e6 / 16 * 1.125 + 64 * 64;
  EXPECT_NEAR(static_cast<double>(plan.kv_bytes), rows * 64512, 64.0 * 64512);
  EXPECT_EQ(plan.workspace_bytes, int64_t{3} * 62500 * 512);
}

// FFNs of 124 layers in F8, a byte a weight and a scale for each of 2 * 53,248 / 8 + 16,384 rows.
TEST(RankMemory, OfA405BInF8FitsAnH100) {
  const auto bf16 = Checkpoint::open("synthetic:405B"), f8 = Checkpoint::open("synthetic:405B-FP8");
  ASSERT_TRUE(f8.ok()) << f8.status();
  MemoryQuestion question;
  question.topology = {8, 16};
  question.context = 1000000;
  question.gpu = true;
  const int64_t ffn = int64_t{124} * 3 * 16384 * 53248 / 8;
  const int64_t scales = int64_t{124} * (2 * 53248 / 8 + 16384) * 4;
  const RankMemory held = rank_memory(*f8, question);
  EXPECT_EQ(held.weight_bytes, rank_memory(*bf16, question).weight_bytes - ffn + scales);
  EXPECT_LT(held.total(), int64_t{77} << 30);
}

}  // namespace
}  // namespace annulus::parallel
