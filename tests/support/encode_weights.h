// SPDX-License-Identifier: Apache-2.0
// Encoders of the weight formats that kernels/weight.h reads, for tests: plain round-to-nearest
// quantisation, deterministic, good to about one step of the format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/weight.h"

namespace annulus::testing {

// Appends a row in a file format. Its length is a multiple of the format's block.
void encode_row(kernels::WeightFormat format, std::span<const float> row,
                std::vector<std::byte>& out);

// Rows as F8 E4M3, each scaled so that its largest weight is 448: bytes of the codes, and of a
// float a row.
struct F8Rows {
  std::vector<std::byte> codes, scales;
};
F8Rows encode_f8_rows(std::span<const float> values, size_t cols);

// The number that GGUF files use for a format.
uint32_t ggml_type(kernels::WeightFormat format);

}  // namespace annulus::testing
