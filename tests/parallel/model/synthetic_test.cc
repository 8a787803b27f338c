// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "parallel/model/checkpoint.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

std::string message(const std::string& shape) {
  return std::string(Checkpoint::open("synthetic:" + shape).status().message());
}

TEST(Synthetic, PublishedShapes) {
  struct Shape {
    const char* name;
    int32_t layers, dim, heads, kv_heads, head_dim, ffn;
    double billions;  // parameters, as published
  };
  for (const Shape& s :
       {Shape{"135M", 30, 576, 9, 3, 64, 1536, 0.135}, Shape{"1B", 16, 2048, 32, 8, 64, 8192, 1.24},
        Shape{"8B", 32, 4096, 32, 8, 128, 14336, 8.03},
        Shape{"70B", 80, 8192, 64, 8, 128, 28672, 70.6},
        Shape{"405B", 126, 16384, 128, 8, 128, 53248, 405.9}}) {
    const auto config = synthetic_config(s.name, {});
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->layers, s.layers);
    EXPECT_EQ(config->heads, s.heads);
    const double d = s.dim, kv = s.kv_heads * s.head_dim, q = s.heads * s.head_dim;
    const double count = s.layers * (2 * d * q + 2 * d * kv + 3 * d * s.ffn + 2 * d) + d +
                         config->vocab * d * (config->tied_head ? 1 : 2);
    EXPECT_NEAR(count / 1e9, s.billions, s.billions * 0.01) << s.name;
  }
}

TEST(Synthetic, MatricesAreSeededWindows) {
  const auto a = Checkpoint::open("synthetic:layers=2,dim=64,heads=4,vocab=300");
  const auto b = Checkpoint::open("synthetic:layers=2,dim=64,heads=4,vocab=300");
  const auto c = Checkpoint::open("synthetic:layers=2,dim=64,heads=4,vocab=301");
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
  EXPECT_NE(a->fingerprint(), c->fingerprint());
  EXPECT_EQ(a->config().kv_heads, 4);
  EXPECT_EQ(a->config().ffn, 256);
  EXPECT_TRUE(a->directory().empty());
  std::set<const std::byte*> windows;
  double sum = 0, squares = 0;
  int64_t count = 0;
  for (const LayerTensors& layer : a->tensors().layers) {
    for (const kernels::WeightSource* w :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      windows.insert(w->data);
      std::vector<float> row(static_cast<size_t>(w->cols)), next(row.size());
      kernels::dequantise_row(*w, 3, row.data());
      kernels::dequantise_row(*w, 4, next.data());
      // 64 bytes are 32 weights of BF16.
      EXPECT_TRUE(std::equal(row.begin() + 32, row.end(), next.begin()));
      for (const float x : row) {
        sum += x;
        squares += x * x;
        ++count;
      }
    }
    EXPECT_EQ(layer.attn_norm, std::vector<float>(64, 1.0f));
  }
  EXPECT_EQ(windows.size(), 14u);
  // 4 standard errors of a uniform distribution with standard deviation 0.02.
  const auto n = static_cast<double>(count);
  EXPECT_NEAR(sum / n, 0, 4 * 0.0202 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.0202, 0.001);
}

TEST(Synthetic, Fp8FfnsButOfTheFirstAndTheLastLayer) {
  const auto a = Checkpoint::open("synthetic:layers=4,dim=64,heads=4,vocab=300-FP8");
  ASSERT_TRUE(a.ok()) << a.status();
  const auto b = Checkpoint::open("synthetic:layers=4,dim=64,heads=4,vocab=300");
  EXPECT_NE(a->fingerprint(), b->fingerprint());
  for (size_t i = 0; i < 4; ++i) {
    const LayerTensors& layer = a->tensors().layers[i];
    EXPECT_EQ(layer.q.format, kernels::WeightFormat::kBF16);
    for (const kernels::WeightSource* w : {&layer.gate, &layer.up, &layer.down}) {
      ASSERT_EQ(w->format,
                i == 1 || i == 2 ? kernels::WeightFormat::kF8E4M3 : kernels::WeightFormat::kBF16);
      if (w->format == kernels::WeightFormat::kBF16) continue;
      EXPECT_EQ(w->input_bound, 1200);
      double squares = 0;
      std::vector<float> row(static_cast<size_t>(w->cols));
      for (int64_t r = 0; r < w->rows; ++r) {
        kernels::dequantise_row(*w, r, row.data());
        for (const float x : row) squares += double{x} * double{x};
      }
      // Scales differ by up to a quarter: the mean square of 1 + u / 4 is 1 + 1 / 48.
      EXPECT_NEAR(std::sqrt(squares / static_cast<double>(w->rows * w->cols)),
                  0.0202 * std::sqrt(1 + 1.0 / 48), 0.001);
    }
  }
  EXPECT_EQ(a->tensors().layers[1].gate.slice_rows(7, 3).row_scales,
            a->tensors().layers[1].gate.row_scales + 28);
}

TEST(Synthetic, AConfigFileIsAShape) {
  const std::string folder = testing::scratch_directory();
  testing::write_folder({}, folder);
  for (const std::string& path : {folder, folder + "/config.json"}) {
    const auto config = synthetic_config(path, {});
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->ffn, testing::TinyModel().ffn);
  }
}

TEST(Synthetic, RefusalsNameTheKey) {
  EXPECT_NE(message("9B").find("there are 135M, 1B, 405B, 70B, 8B"), std::string::npos);
  EXPECT_NE(message("").find("no such shape"), std::string::npos);
  EXPECT_NE(message("layers=2,width=4").find("no key \"width\""), std::string::npos);
  EXPECT_NE(message("layers=2,dim=4x,heads=2").find("dim is \"4x\""), std::string::npos);
  EXPECT_NE(message("layers=2,dim=64").find("heads is missing"), std::string::npos);
  EXPECT_NE(message("layers=2,dim=64,heads=-1").find("not a positive number"), std::string::npos);
  EXPECT_NE(message("layers=2,dim=64,heads=5,kv_heads=2").find("heads"), std::string::npos);
  EXPECT_NE(message("layers=9999,dim=64,heads=2").find("layers"), std::string::npos);
  EXPECT_NE(message("layers=2,dim=64,heads=2,ffn=2097152").find("at most"), std::string::npos);
  EXPECT_FALSE(message("layers=2000000000,dim=2000000000,heads=2000000000").empty());
}

}  // namespace
}  // namespace annulus::parallel
