// SPDX-License-Identifier: Apache-2.0
// Models without a file, for benchmarks: "synthetic:SHAPE" wherever a model's path is asked for.
// SHAPE is a published one (135M, 1B, 8B, 70B, 405B), a config.json or its folder, or a list such
// as layers=2,dim=512,heads=16,kv_heads=1. Weights are BF16 and seeded: every matrix is a window of
// one block of random numbers in which each row begins 64 bytes behind the one before, so that a
// rank generates megabytes, whatever it loads. Answers mean nothing; rates, bytes, layouts and
// exactness across layouts are those of the shape. Pure but for reading a config.json.
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

// Errors: InvalidArgument that lists the shapes or keys there are; NotFound for a missing file.
absl::StatusOr<LlamaConfig> synthetic_config(std::string_view shape,
                                             const ConfigOverrides& overrides);

class SyntheticWeights {
 public:
  static constexpr int64_t kRowStrideBytes = 64;

  explicit SyntheticWeights(const LlamaConfig& config);

  // Rows r of [rows, cols] BF16 begin at data() + r * kRowStrideBytes; another window for each
  // name.
  std::span<const std::byte> matrix(std::string_view name, int64_t rows, int64_t cols) const;
  std::span<const std::byte> ones(int64_t count) const;  // BF16

 private:
  std::vector<uint16_t> ones_, random_;
};

}  // namespace annulus::parallel
