// SPDX-License-Identifier: Apache-2.0
// Reader of safetensors files and of the index of a model split over several. The parse functions
// are pure: views of tensor data point into the given bytes, which must outlive the result. Header
// size, JSON, shapes and offsets are checked against the file; duplicate names, overlapping
// tensors, unknown types and shard names that leave the folder are refused with InvalidArgument
// naming file and tensor. Immutable, so safe to read from any thread. Used by checkpoint.
// Source: README.md of huggingface/safetensors ("Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/weight.h"
#include "parallel/model/mapped_file.h"

namespace annulus::parallel {

struct SafeTensor {
  std::string dtype;           // as the file writes it: "BF16"
  std::vector<int64_t> shape;  // outermost first; empty = one element
  std::span<const std::byte> data;
};
using SafeTensors = std::map<std::string, SafeTensor>;

// label names the file in errors.
absl::StatusOr<SafeTensors> parse_safetensors(std::span<const std::byte> file,
                                              const std::string& label);

// Tensor name -> file name, out of model.safetensors.index.json.
absl::StatusOr<std::map<std::string, std::string>> parse_safetensors_index(
    std::string_view json, const std::string& label);

// All tensors of a folder: model.safetensors.index.json and its shards, else model.safetensors.
struct SafetensorsFolder {
  std::vector<MappedFile> files;
  SafeTensors tensors;
};
absl::StatusOr<SafetensorsFolder> open_safetensors_folder(const std::string& directory);
absl::StatusOr<SafetensorsFolder> open_safetensors_file(const std::string& path);

// The formats that kernels read: F32, F16, BF16 and F8_E4M3.
std::optional<kernels::WeightFormat> safetensors_weight_format(std::string_view dtype);

}  // namespace annulus::parallel
