// SPDX-License-Identifier: Apache-2.0
#include "tests/support/gguf_writer.h"

#include <utility>

#include "tests/support/bytes.h"

namespace annulus::testing {
namespace {

void append_text(std::vector<std::byte>& out, std::string_view text) {
  append(out, uint64_t{text.size()});
  append_bytes(out, text.data(), text.size());
}
void pad_to(std::vector<std::byte>& out, size_t alignment) {
  out.resize((out.size() + alignment - 1) / alignment * alignment);
}

}  // namespace

void GgufWriter::key(std::string_view name, uint32_t type) {
  append_text(metadata_, name);
  append(metadata_, type);
  ++entries_;
}
void GgufWriter::integer(std::string_view name, uint32_t value) {
  key(name, 4);
  append(metadata_, value);
}
void GgufWriter::number(std::string_view name, float value) {
  key(name, 6);
  append(metadata_, value);
}
void GgufWriter::boolean(std::string_view name, bool value) {
  key(name, 7);
  append(metadata_, static_cast<uint8_t>(value ? 1 : 0));
}
void GgufWriter::string(std::string_view name, std::string_view value) {
  key(name, 8);
  append_text(metadata_, value);
}
void GgufWriter::strings(std::string_view name, std::span<const std::string> values) {
  key(name, 9);
  append(metadata_, uint32_t{8});
  append(metadata_, uint64_t{values.size()});
  for (const std::string& value : values) append_text(metadata_, value);
}
void GgufWriter::integers(std::string_view name, std::span<const int32_t> values) {
  key(name, 9);
  append(metadata_, uint32_t{5});
  append(metadata_, uint64_t{values.size()});
  for (const int32_t value : values) append(metadata_, value);
}
void GgufWriter::tensor(std::string_view name, uint32_t type, std::vector<int64_t> shape,
                        std::vector<std::byte> data) {
  tensors_.push_back({std::string(name), type, std::move(shape), std::move(data)});
}

std::vector<std::byte> GgufWriter::finish() const {
  std::vector<std::byte> out;
  append(out, uint32_t{0x46554747});
  append(out, uint32_t{3});
  append(out, uint64_t{tensors_.size()});
  append(out, entries_);
  append_bytes(out, metadata_.data(), metadata_.size());
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    append_text(out, tensor.name);
    append(out, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t d = tensor.shape.size(); d-- > 0;) append(out, tensor.shape[d]);
    append(out, tensor.type);
    append(out, offset);
    offset = (offset + tensor.data.size() + 31) / 32 * 32;
  }
  for (const Tensor& tensor : tensors_) {
    pad_to(out, 32);
    append_bytes(out, tensor.data.data(), tensor.data.size());
  }
  return out;
}

}  // namespace annulus::testing
