// SPDX-License-Identifier: Apache-2.0
// Reader of GGUF files (versions 2 and 3, little-endian): metadata and tensor directory. parse() is
// pure: it allocates in proportion to the entries really present and returns views into the given
// bytes, which must outlive the GgufFile. Every length, count and offset is checked against the
// file; duplicate names, overlapping or misaligned tensors and unknown types are refused with
// InvalidArgument naming file and key or tensor. Tensor contents are not looked at. Immutable, so
// safe to read from any thread. Used by config, checkpoint and server/tokenizer.
// Source: docs/gguf.md of ggml.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kernels/weight.h"

namespace annulus::parallel {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType element = GgufType::kU8;    // type of the elements of an array
  uint64_t count = 1;                  // elements of an array
  std::span<const std::byte> payload;  // encoded value, or encoded elements
};

struct GgufTensor {
  std::string_view name;
  uint32_t type = 0;           // ggml's number
  std::vector<int64_t> shape;  // outermost first: [out features, in features]; 1 to 4 entries
  std::span<const std::byte> data;
};

class GgufFile {
 public:
  // label names the file in errors.
  static absl::StatusOr<GgufFile> parse(std::span<const std::byte> file, const std::string& label);

  uint32_t version() const { return version_; }
  const std::string& label() const { return label_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;
  const absl::flat_hash_map<std::string_view, GgufValue>& metadata() const { return metadata_; }
  bool has(std::string_view key) const { return metadata_.contains(key); }

  // Typed lookups. A missing key is NotFound, another type InvalidArgument; both name the key.
  absl::StatusOr<int64_t> integer(std::string_view key) const;  // any integer type
  absl::StatusOr<double> number(std::string_view key) const;    // any integer or float type
  absl::StatusOr<bool> boolean(std::string_view key) const;
  absl::StatusOr<std::string_view> string(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> strings(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> integers(std::string_view key) const;
  absl::StatusOr<std::vector<double>> numbers(std::string_view key) const;

 private:
  absl::StatusOr<GgufValue> value_of(std::string_view key, bool is_array) const;
  absl::Status wrong_type(std::string_view key, const char* wanted) const;

  std::string label_;
  uint32_t version_ = 0;
  absl::flat_hash_map<std::string_view, GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
  absl::flat_hash_map<std::string_view, size_t> tensor_index_;
};

// "Q4_K"; "type 99" where the number is unknown.
std::string gguf_type_name(uint32_t type);
// The formats that kernels read.
std::optional<kernels::WeightFormat> gguf_weight_format(uint32_t type);
// A name out of a file for an error message: escaped and shortened, in single quotes.
std::string quote_name(std::string_view untrusted);

}  // namespace annulus::parallel
