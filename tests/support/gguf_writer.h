// SPDX-License-Identifier: Apache-2.0
// Collects metadata and tensors and renders a GGUF v3 file, in the order added. Nothing is checked,
// so that tests can write nonsense.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace annulus::testing {

class GgufWriter {
 public:
  void integer(std::string_view key, uint32_t value);
  void number(std::string_view key, float value);
  void boolean(std::string_view key, bool value);
  void string(std::string_view key, std::string_view value);
  void strings(std::string_view key, std::span<const std::string> values);
  void integers(std::string_view key, std::span<const int32_t> values);
  // shape as in memory, outermost first; data is encoded already.
  void tensor(std::string_view name, uint32_t ggml_type, std::vector<int64_t> shape,
              std::vector<std::byte> data);
  std::vector<std::byte> finish() const;

 private:
  struct Tensor {
    std::string name;
    uint32_t type;
    std::vector<int64_t> shape;
    std::vector<std::byte> data;
  };
  void key(std::string_view name, uint32_t type);

  uint64_t entries_ = 0;
  std::vector<std::byte> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace annulus::testing
