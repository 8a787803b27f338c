// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/weights.h"

#include <gtest/gtest.h>

#include "kernels/cpu/packed.h"
#include "kernels/cpu/queue.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using kernels::PackedMatrix;
using kernels::Precision;
using kernels::WeightFormat;
using kernels::WeightSource;
using testing::TinyModel;

struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<float> values;
  bool operator==(const Matrix&) const = default;
};

Matrix dequantised(const WeightSource& source) {
  Matrix m{source.rows, source.cols, {}};
  m.values.resize(static_cast<size_t>(m.rows * m.cols));
  for (int64_t r = 0; r < m.rows; ++r) dequantise_row(source, r, m.values.data() + r * m.cols);
  return m;
}
Matrix below(const Matrix& top, const Matrix& bottom) {
  if (top.rows == 0) return bottom;
  Matrix m{top.rows + bottom.rows, top.cols, top.values};
  m.values.insert(m.values.end(), bottom.values.begin(), bottom.values.end());
  return m;
}
Matrix beside(const Matrix& left, const Matrix& right) {
  if (left.rows == 0) return right;
  Matrix m{left.rows, left.cols + right.cols, {}};
  for (int64_t r = 0; r < m.rows; ++r)
    for (const Matrix* part : {&left, &right})
      m.values.insert(m.values.end(), part->values.begin() + r * part->cols,
                      part->values.begin() + (r + 1) * part->cols);
  return m;
}

// A packed fp32 matrix: panels of 32 outputs, inside by k (kernels/cpu/packed.h).
Matrix unpacked(const PackedMatrix& packed) {
  EXPECT_EQ(packed.format(), WeightFormat::kF32);
  Matrix m{packed.n(), packed.k(), {}};
  const int64_t panel_bytes = kernels::panel_bytes(WeightFormat::kF32, m.cols);
  for (int64_t n = 0; n < m.rows; ++n) {
    const auto* panel = reinterpret_cast<const float*>(packed.data() + n / 32 * panel_bytes);
    for (int64_t k = 0; k < m.cols; ++k) m.values.push_back(panel[k * 32 + n % 32]);
  }
  return m;
}

// Divides by 1, 2, 3 and 6; columns are whole blocks of every format, but their slices are not
// (768 / 6 = 128 in blocks of 256).
Checkpoint model_of(WeightFormat format, bool tied) {
  TinyModel model;
  model.layers = 1;
  model.dim = 256;
  model.heads = 12;
  model.kv_heads = 6;
  model.head_dim = 64;
  model.ffn = 768;
  model.tied = tied;
  model.matrices = model.embedding = format;
  const std::string path = testing::scratch_directory() + "/tiny.gguf";
  testing::write_gguf(model, path);
  auto checkpoint = Checkpoint::open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

class WeightsOfFormat : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(WeightsOfFormat, SlicesGluedTogetherAreTheWhole) {
  const Checkpoint checkpoint = model_of(GetParam(), true);
  const LlamaConfig& config = checkpoint.config();
  const LayerTensors& whole = checkpoint.tensors().layers[0];
  ASSERT_EQ(valid_tp(config), (std::vector<int>{1, 2, 3, 6}));
  for (const int tp : valid_tp(config)) {
    Matrix q, k, v, o, gate, up, down, head;
    for (int rank = 0; rank < tp; ++rank) {
      const LayerSlice slice = slice_layer(config, whole, rank, tp);
      EXPECT_EQ(slice.qkv[0].rows, 768 / tp);
      EXPECT_EQ(slice.qkv[2].rows, 384 / tp);
      EXPECT_EQ(slice.down.cols, 768 / tp);
      q = below(q, dequantised(slice.qkv[0]));
      k = below(k, dequantised(slice.qkv[1]));
      v = below(v, dequantised(slice.qkv[2]));
      o = beside(o, dequantised(slice.o));
      gate = below(gate, dequantised(slice.gate_up[0]));
      up = below(up, dequantised(slice.gate_up[1]));
      down = beside(down, dequantised(slice.down));
      head = below(head, dequantised(slice_head(config, checkpoint.tensors(), rank, tp)));
    }
    EXPECT_EQ(q, dequantised(whole.q)) << tp;
    EXPECT_EQ(k, dequantised(whole.k)) << tp;
    EXPECT_EQ(v, dequantised(whole.v)) << tp;
    EXPECT_EQ(o, dequantised(whole.o)) << tp;
    EXPECT_EQ(gate, dequantised(whole.gate)) << tp;
    EXPECT_EQ(up, dequantised(whole.up)) << tp;
    EXPECT_EQ(down, dequantised(whole.down)) << tp;
    EXPECT_EQ(head, dequantised(checkpoint.tensors().head)) << tp;
  }
}

TEST_P(WeightsOfFormat, PackedMatricesHoldTheSlices) {
  kernels::CpuQueue queue(1);
  const Checkpoint checkpoint = model_of(GetParam(), false);
  const LlamaConfig& config = checkpoint.config();
  for (const int tp : {1, 3}) {
    const int rank = tp - 1;
    const auto weights = load_weights(queue, checkpoint, rank, tp, Precision::kF32);
    ASSERT_TRUE(weights.ok()) << weights.status();
    ASSERT_EQ(weights->layers.size(), 1u);
    const LayerTensors& whole = checkpoint.tensors().layers[0];
    const LayerSlice slice = slice_layer(config, whole, rank, tp);
    const LayerWeights<kernels::CpuQueue>& layer = weights->layers[0];
    EXPECT_EQ(unpacked(layer.qkv),
              below(below(dequantised(slice.qkv[0]), dequantised(slice.qkv[1])),
                    dequantised(slice.qkv[2])));
    EXPECT_EQ(unpacked(layer.o), dequantised(slice.o));
    EXPECT_EQ(unpacked(layer.gate_up),
              below(dequantised(slice.gate_up[0]), dequantised(slice.gate_up[1])));
    EXPECT_EQ(unpacked(layer.down), dequantised(slice.down));
    EXPECT_EQ(unpacked(weights->head),
              dequantised(slice_head(config, checkpoint.tensors(), rank, tp)));
    EXPECT_EQ(layer.attn_norm.host(), whole.attn_norm);
    EXPECT_EQ(layer.ffn_norm.host(), whole.ffn_norm);
    EXPECT_EQ(weights->output_norm.host(), checkpoint.tensors().output_norm);
    EXPECT_EQ(weights->embedding.data, checkpoint.tensors().embedding.data);
  }
}

INSTANTIATE_TEST_SUITE_P(Weights, WeightsOfFormat,
                         ::testing::Values(WeightFormat::kF32, WeightFormat::kF16,
                                           WeightFormat::kBF16, WeightFormat::kQ8_0,
                                           WeightFormat::kQ4_0, WeightFormat::kQ4_1,
                                           WeightFormat::kQ6_K));

TEST(Weights, ProgressCountsEveryByteOnce) {
  kernels::CpuQueue queue(1);
  const Checkpoint checkpoint = model_of(WeightFormat::kQ4_1, false);
  int64_t sum_of_totals = 0, whole = 0;
  for (const int tp : {1, 3}) {
    for (int rank = 0; rank < tp; ++rank) {
      int64_t last = 0, total = 0;
      const auto weights = load_weights(queue, checkpoint, rank, tp, Precision::kDefault,
                                        [&](int64_t done_bytes, int64_t total_bytes) {
                                          EXPECT_GT(done_bytes, last);
                                          last = done_bytes;
                                          total = total_bytes;
                                        });
      ASSERT_TRUE(weights.ok()) << weights.status();
      EXPECT_EQ(last, total);
      EXPECT_EQ(weights->layers[0].qkv.format(), WeightFormat::kQ4_1);
      // Packed weights stay quantised: the norms (fp32) and the rounding up to panels come on top.
      EXPECT_GE(weights->bytes, total);
      EXPECT_LE(weights->bytes, total + total / 10);
      (tp == 1 ? whole : sum_of_totals) += total;
    }
  }
  EXPECT_EQ(sum_of_totals, whole);
}

TEST(Weights, RefusesSizesThatDoNotDivide) {
  kernels::CpuQueue queue(1);
  const Checkpoint checkpoint = model_of(WeightFormat::kQ8_0, true);
  const absl::Status status = load_weights(queue, checkpoint, 0, 4, Precision::kDefault).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(status.message().find("it can be 1, 2, 3, 6"), absl::string_view::npos) << status;
  const LlamaConfig& config = checkpoint.config();
  const LayerTensors& layer = checkpoint.tensors().layers[0];
  EXPECT_DEATH(slice_layer(config, layer, 3, 3), "tp_rank 3 tp_size 3");
}

}  // namespace
}  // namespace annulus::parallel
