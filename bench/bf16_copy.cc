// SPDX-License-Identifier: Apache-2.0
#include "bench/bf16_copy.h"

#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/dtype.h"
#include "parallel/model/checkpoint.h"

namespace annulus::bench {
namespace {

using kernels::WeightFormat;
using parallel::GgufTensor;
using parallel::GgufType;

constexpr uint32_t kGgmlBF16 = 30;
constexpr uint64_t kAlignment = 32;

template <class T>
void put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put_bytes(std::string& out, std::span<const std::byte> bytes) {
  out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}
void put_text(std::string& out, std::string_view text) {
  put(out, uint64_t{text.size()});
  out.append(text);
}
uint64_t padded(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

bool is_quantised(const GgufTensor& tensor) {
  const auto format = parallel::gguf_weight_format(tensor.type);
  return format && kernels::block_of(*format).weights > 1;
}

std::string as_bf16(const GgufTensor& tensor) {
  const WeightFormat format = *parallel::gguf_weight_format(tensor.type);
  const kernels::WeightBlock block = kernels::block_of(format);
  const int64_t cols = tensor.shape.back();
  const int64_t stride = cols / block.weights * block.bytes;
  const int64_t rows = static_cast<int64_t>(tensor.data.size()) / stride;
  const kernels::WeightSource source{format, tensor.data.data(), rows, cols, 0, stride};
  std::vector<float> row(static_cast<size_t>(cols));
  std::string out;
  out.reserve(static_cast<size_t>(rows * cols * 2));
  for (int64_t r = 0; r < rows; ++r) {
    kernels::dequantise_row(source, r, row.data());
    for (const float x : row) put(out, kernels::to_bf16(x).bits);
  }
  return out;
}

}  // namespace

absl::Status write_bf16_copy(const std::string& from, const std::string& to) {
  const absl::StatusOr<parallel::Checkpoint> checkpoint = parallel::Checkpoint::open(from);
  if (!checkpoint.ok()) return checkpoint.status();
  const parallel::GgufFile* file = checkpoint->gguf();
  if (file == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(from, " is not a GGUF file: it has no twin"));

  std::string head = "GGUF";
  put(head, uint32_t{3});
  put(head, uint64_t{file->tensors().size()});
  uint64_t entries = 0;
  std::string metadata;
  for (const auto& [key, value] : file->metadata()) {
    if (key == "general.alignment") continue;  // the default is what is written
    ++entries;
    put_text(metadata, key);
    put(metadata, value.type);
    if (value.type == GgufType::kArray) {
      put(metadata, value.element);
      put(metadata, value.count);
    }
    put_bytes(metadata, value.payload);
  }
  put(head, entries);
  head += metadata;
  uint64_t offset = 0;
  for (const GgufTensor& tensor : file->tensors()) {
    put_text(head, tensor.name);
    put(head, static_cast<uint32_t>(tensor.shape.size()));
    uint64_t elements = 1;
    for (auto d = tensor.shape.rbegin(); d != tensor.shape.rend(); ++d) {
      put(head, *d);
      elements *= static_cast<uint64_t>(*d);
    }
    put(head, is_quantised(tensor) ? kGgmlBF16 : tensor.type);
    put(head, offset);
    offset += padded(is_quantised(tensor) ? elements * 2 : tensor.data.size());
  }
  head.resize(padded(head.size()));

  std::ofstream out(to, std::ios::binary | std::ios::trunc);
  out << head;
  for (const GgufTensor& tensor : file->tensors()) {
    std::string data;
    if (is_quantised(tensor)) {
      data = as_bf16(tensor);
    } else {
      put_bytes(data, tensor.data);
    }
    data.resize(padded(data.size()));
    out << data;
  }
  out.close();
  if (out.fail()) return absl::UnavailableError(absl::StrCat("cannot write ", to));
  return absl::OkStatus();
}

}  // namespace annulus::bench
