// SPDX-License-Identifier: Apache-2.0
// Models without a file, for benchmarks: "synthetic:SHAPE" wherever a model's path is asked for.
// SHAPE is a published one (135M, 1B, 8B, 70B, 405B), a config.json or its folder, or a list such
// as layers=2,dim=512,heads=16,kv_heads=1. Weights are BF16; behind "-FP8" those of FFNs are F8
// with a scale a row, but for the first and the last layer, as in Llama-3.1-405B-Instruct-FP8. They
// are seeded: every matrix is a window of one block of random numbers in which each row begins 64
// bytes behind the one before, so that a rank generates megabytes, whatever it loads. Answers mean
// nothing; rates, bytes, layouts and exactness across layouts are those of the shape. Pure but for
// reading a config.json.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/model/config.h"

namespace annulus::parallel {

inline constexpr std::string_view kSyntheticPrefix = "synthetic:";

bool synthetic_has_f8(std::string_view shape);
// Errors: InvalidArgument that lists the shapes or keys there are; NotFound for a missing file.
absl::StatusOr<LlamaConfig> synthetic_config(std::string_view shape,
                                             const ConfigOverrides& overrides);

class SyntheticWeights {
 public:
  static constexpr int64_t kRowStrideBytes = 64;

  SyntheticWeights(const LlamaConfig& config, bool f8);

  // Rows r of [rows, cols] BF16 begin at data() + r * kRowStrideBytes; another window for each
  // name.
  std::span<const std::byte> matrix(std::string_view name, int64_t rows, int64_t cols) const;
  std::span<const std::byte> ones(int64_t count) const;  // BF16
  // The same of F8, and what each row is times, F32; only where there are some.
  std::span<const std::byte> matrix_f8(std::string_view name, int64_t rows, int64_t cols) const;
  std::span<const std::byte> row_scales(int64_t rows) const;
  std::span<const std::byte> input_bound() const;  // one F32

 private:
  std::vector<uint16_t> ones_, random_;
  std::vector<uint8_t> codes_;
  std::vector<float> row_scales_;
};

}  // namespace annulus::parallel
