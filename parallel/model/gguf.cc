// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/gguf.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace annulus::parallel {
namespace {

using kernels::WeightFormat;

struct TensorType {
  uint32_t id;
  const char* name;
  int32_t block_weights, block_bytes;
};
constexpr TensorType kTensorTypes[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
};

const TensorType* tensor_type(uint32_t id) {
  for (const TensorType& type : kTensorTypes)
    if (type.id == id) return &type;
  return nullptr;
}

// The smallest entries that a file can hold; counts beyond file size / these are absurd.
constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;           // key, type, value
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name, dims, one dim, type, offset
constexpr uint64_t kMaxDims = 4;
constexpr int kMaxArrayDepth = 4;
constexpr int64_t kMaxElements = int64_t{1} << 48;

size_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    default: return 0;
  }
}

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

struct Cursor {
  std::span<const std::byte> bytes;
  size_t at = 0;

  uint64_t left() const { return bytes.size() - at; }
  bool skip(uint64_t count) {
    if (count > left()) return false;
    at += static_cast<size_t>(count);
    return true;
  }
  template <class T>
  bool read(T& value) {
    if (sizeof(T) > left()) return false;
    value = load<T>(bytes.data() + at);
    at += sizeof(T);
    return true;
  }
  bool read(std::string_view& text) {
    uint64_t length = 0;
    if (!read(length) || length > left()) return false;
    text = {reinterpret_cast<const char*>(bytes.data() + at), static_cast<size_t>(length)};
    return skip(length);
  }
};

bool known_type(uint32_t type) {
  return type <= static_cast<uint32_t>(GgufType::kF64);
}

bool valid_bools(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b <= std::byte{1}; });
}

// Moves the cursor over `count` encoded values of a type; nullptr, or what is wrong.
const char* skip_values(Cursor& in, GgufType type, uint64_t count, int depth) {
  constexpr const char* kTruncated = "reaches past the end of the file";
  if (const size_t each = scalar_bytes(type); each != 0) {
    if (count > in.left() / each) return kTruncated;
    const auto values = in.bytes.subspan(in.at, static_cast<size_t>(count) * each);
    in.skip(values.size());
    return type == GgufType::kBool && !valid_bools(values) ? "holds a boolean that is not 0 or 1"
                                                           : nullptr;
  }
  if (type == GgufType::kString) {
    if (count > in.left() / 8) return kTruncated;
    for (std::string_view text; count > 0; --count)
      if (!in.read(text)) return kTruncated;
    return nullptr;
  }
  if (depth == 0) return "nests arrays too deeply";
  if (count > in.left() / 12) return kTruncated;
  for (; count > 0; --count) {
    uint32_t element = 0;
    uint64_t elements = 0;
    if (!in.read(element) || !in.read(elements)) return kTruncated;
    if (!known_type(element)) return "has elements of an unknown type";
    const char* problem = skip_values(in, static_cast<GgufType>(element), elements, depth - 1);
    if (problem != nullptr) return problem;
  }
  return nullptr;
}

const char* read_value(Cursor& in, GgufValue& value) {
  uint32_t type = 0;
  if (!in.read(type)) return "reaches past the end of the file";
  if (!known_type(type)) return "has an unknown type";
  value.type = static_cast<GgufType>(type);
  GgufType skipped = value.type;
  if (value.type == GgufType::kArray) {
    uint32_t element = 0;
    if (!in.read(element) || !in.read(value.count)) return "reaches past the end of the file";
    if (!known_type(element)) return "has elements of an unknown type";
    skipped = value.element = static_cast<GgufType>(element);
  }
  const size_t begin = in.at;
  const char* problem = skip_values(in, skipped, value.count, kMaxArrayDepth);
  if (problem == nullptr) value.payload = in.bytes.subspan(begin, in.at - begin);
  return problem;
}

// Reads one directory entry; `bytes` is the size of the data that `offset` points at.
const char* read_tensor(Cursor& in, GgufTensor& tensor, uint64_t& offset, uint64_t& bytes) {
  constexpr const char* kTruncated = "has a directory entry that reaches past the end of the file";
  uint32_t dims = 0;
  if (!in.read(dims)) return kTruncated;
  if (dims == 0 || dims > kMaxDims) return "does not have 1 to 4 dimensions";
  int64_t elements = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    uint64_t size = 0;
    if (!in.read(size)) return kTruncated;
    if (size == 0 || size > static_cast<uint64_t>(kMaxElements / elements))
      return "has an impossible shape";
    elements *= static_cast<int64_t>(size);
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  if (!in.read(tensor.type) || !in.read(offset)) return kTruncated;
  const TensorType* type = tensor_type(tensor.type);
  if (type == nullptr) return "has a type that is unknown here (is the file newer than Annulus?)";
  if (tensor.shape[0] % type->block_weights != 0) return "has rows that are not whole blocks";
  bytes = static_cast<uint64_t>(elements / type->block_weights) *
          static_cast<uint64_t>(type->block_bytes);
  std::reverse(tensor.shape.begin(), tensor.shape.end());  // the file lists the innermost first
  return nullptr;
}

bool as_integer(GgufType type, const std::byte* from, int64_t& value) {
  switch (type) {
    case GgufType::kU8: value = load<uint8_t>(from); return true;
    // NOLINTNEXTLINE(bugprone-signed-char-misuse): a number, not a character.
    case GgufType::kI8: value = load<int8_t>(from); return true;
    case GgufType::kU16: value = load<uint16_t>(from); return true;
    case GgufType::kI16: value = load<int16_t>(from); return true;
    case GgufType::kU32: value = load<uint32_t>(from); return true;
    case GgufType::kI32: value = load<int32_t>(from); return true;
    case GgufType::kI64: value = load<int64_t>(from); return true;
    case GgufType::kU64: {
      const uint64_t wide = load<uint64_t>(from);
      value = static_cast<int64_t>(wide);
      return wide <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    }
    default: return false;
  }
}

bool as_number(GgufType type, const std::byte* from, double& value) {
  if (type == GgufType::kF32) {
    value = static_cast<double>(load<float>(from));
    return true;
  }
  if (type == GgufType::kF64) {
    value = load<double>(from);
    return true;
  }
  int64_t integer = 0;
  if (!as_integer(type, from, integer)) return false;
  value = static_cast<double>(integer);
  return true;
}

}  // namespace

std::string quote_name(std::string_view untrusted) {
  constexpr size_t kLongest = 80;
  return absl::StrCat(
      "'",
      absl::CHexEscape(absl::string_view(untrusted.data(), std::min(untrusted.size(), kLongest))),
      untrusted.size() > kLongest ? "...'" : "'");
}

std::string gguf_type_name(uint32_t type) {
  const TensorType* known = tensor_type(type);
  return known != nullptr ? known->name : absl::StrCat("type ", type);
}

std::optional<WeightFormat> gguf_weight_format(uint32_t type) {
  switch (type) {
    case 0: return WeightFormat::kF32;
    case 1: return WeightFormat::kF16;
    case 2: return WeightFormat::kQ4_0;
    case 3: return WeightFormat::kQ4_1;
    case 8: return WeightFormat::kQ8_0;
    case 14: return WeightFormat::kQ6_K;
    case 30: return WeightFormat::kBF16;
    default: return std::nullopt;
  }
}

absl::StatusOr<GgufFile> GgufFile::parse(std::span<const std::byte> file,
                                         const std::string& label) {
  GgufFile gguf;
  gguf.label_ = std::string(label);
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(gguf.label_, ": ", parts...));
  };
  constexpr const char* kFetchAgain = "; the file is damaged or incomplete, fetch it again";

  Cursor in{file};
  constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
  uint32_t magic = 0;
  if (!in.read(magic) || magic != kMagic)
    return bad("not a GGUF file (it does not begin with 'GGUF')");
  uint64_t tensor_count = 0, entry_count = 0;
  if (!in.read(gguf.version_)) return bad("the header is cut off", kFetchAgain);
  if (gguf.version_ != 2 && gguf.version_ != 3) {
    if ((gguf.version_ & 0xffffu) == 0)
      return bad("a big-endian GGUF file; convert it to little-endian");
    return bad("GGUF version ", gguf.version_, " is not supported (2 and 3 are); convert it again");
  }
  if (!in.read(tensor_count) || !in.read(entry_count))
    return bad("the header is cut off", kFetchAgain);
  if (entry_count > in.left() / kMinEntryBytes)
    return bad("claims ", entry_count, " metadata entries, more than fit in it", kFetchAgain);
  if (tensor_count > in.left() / kMinTensorBytes)
    return bad("claims ", tensor_count, " tensors, more than fit in it", kFetchAgain);

  for (uint64_t i = 0; i < entry_count; ++i) {
    std::string_view key;
    GgufValue value;
    if (!in.read(key) || key.empty())
      return bad("metadata entry ", i, " has no readable key", kFetchAgain);
    if (const char* problem = read_value(in, value))
      return bad("metadata key ", quote_name(key), " ", problem, kFetchAgain);
    if (!gguf.metadata_.emplace(key, value).second)
      return bad("metadata key ", quote_name(key), " occurs twice", kFetchAgain);
  }

  uint64_t alignment = 32;
  if (gguf.has("general.alignment")) {
    const absl::StatusOr<int64_t> given = gguf.integer("general.alignment");
    if (!given.ok()) return given.status();
    if (*given < 8 || *given > (1 << 20) || (*given & (*given - 1)) != 0)
      return bad("general.alignment is ", *given, ", not a power of two from 8", kFetchAgain);
    alignment = static_cast<uint64_t>(*given);
  }

  struct Range {
    uint64_t offset, bytes;
  };
  std::vector<Range> ranges;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    GgufTensor tensor;
    Range range = {};
    if (!in.read(tensor.name) || tensor.name.empty())
      return bad("tensor ", i, " has no readable name", kFetchAgain);
    if (const char* problem = read_tensor(in, tensor, range.offset, range.bytes))
      return bad("tensor ", quote_name(tensor.name), " ", problem, kFetchAgain);
    if (range.offset % alignment != 0)
      return bad("tensor ", quote_name(tensor.name), " is not aligned to ", alignment, " bytes",
                 kFetchAgain);
    if (!gguf.tensor_index_.emplace(tensor.name, gguf.tensors_.size()).second)
      return bad("tensor ", quote_name(tensor.name), " occurs twice", kFetchAgain);
    gguf.tensors_.push_back(std::move(tensor));
    ranges.push_back(range);
  }
  if (gguf.tensors_.empty()) return gguf;

  const uint64_t data_begin = (uint64_t{in.at} + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = data_begin < file.size() ? file.size() - data_begin : 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const Range& range = ranges[i];
    if (range.bytes > data_bytes || range.offset > data_bytes - range.bytes)
      return bad("tensor ", quote_name(gguf.tensors_[i].name), " (", range.bytes, " bytes at ",
                 range.offset, ") reaches past the end of the file", kFetchAgain);
    gguf.tensors_[i].data = file.subspan(static_cast<size_t>(data_begin + range.offset),
                                         static_cast<size_t>(range.bytes));
  }
  std::vector<size_t> order(ranges.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return ranges[a].offset < ranges[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Range& before = ranges[order[i - 1]];
    if (before.offset + before.bytes > ranges[order[i]].offset)
      return bad("tensors ", quote_name(gguf.tensors_[order[i - 1]].name), " and ",
                 quote_name(gguf.tensors_[order[i]].name), " overlap", kFetchAgain);
  }
  return gguf;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

absl::Status GgufFile::wrong_type(std::string_view key, const char* wanted) const {
  return absl::InvalidArgumentError(
      absl::StrCat(label_, ": metadata key ", quote_name(key), " is not ", wanted));
}

absl::StatusOr<GgufValue> GgufFile::value_of(std::string_view key, bool is_array) const {
  const auto it = metadata_.find(key);
  if (it == metadata_.end())
    return absl::NotFoundError(
        absl::StrCat(label_, ": metadata key ", quote_name(key), " is missing"));
  if ((it->second.type == GgufType::kArray) != is_array)
    return wrong_type(key, is_array ? "an array" : "a single value");
  return it->second;
}

absl::StatusOr<int64_t> GgufFile::integer(std::string_view key) const {
  const absl::StatusOr<GgufValue> value = value_of(key, false);
  if (!value.ok()) return value.status();
  int64_t integer = 0;
  if (!as_integer(value->type, value->payload.data(), integer))
    return wrong_type(key, "an integer of 63 bits");
  return integer;
}

absl::StatusOr<double> GgufFile::number(std::string_view key) const {
  const absl::StatusOr<GgufValue> value = value_of(key, false);
  if (!value.ok()) return value.status();
  double number = 0;
  if (!as_number(value->type, value->payload.data(), number)) return wrong_type(key, "a number");
  return number;
}

absl::StatusOr<bool> GgufFile::boolean(std::string_view key) const {
  const absl::StatusOr<GgufValue> value = value_of(key, false);
  if (!value.ok()) return value.status();
  if (value->type != GgufType::kBool) return wrong_type(key, "a boolean");
  return value->payload[0] != std::byte{0};
}

absl::StatusOr<std::string_view> GgufFile::string(std::string_view key) const {
  const absl::StatusOr<GgufValue> value = value_of(key, false);
  if (!value.ok()) return value.status();
  if (value->type != GgufType::kString) return wrong_type(key, "a string");
  std::string_view text;
  Cursor{value->payload}.read(text);
  return text;
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  const absl::StatusOr<GgufValue> value = value_of(key, true);
  if (!value.ok()) return value.status();
  if (value->element != GgufType::kString) return wrong_type(key, "an array of strings");
  std::vector<std::string_view> texts(static_cast<size_t>(value->count));
  Cursor in{value->payload};
  for (std::string_view& text : texts) in.read(text);
  return texts;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  const absl::StatusOr<GgufValue> value = value_of(key, true);
  if (!value.ok()) return value.status();
  const size_t each = scalar_bytes(value->element);
  std::vector<int64_t> all(each == 0 ? 0 : static_cast<size_t>(value->count));
  for (size_t i = 0; i < all.size(); ++i)
    if (!as_integer(value->element, value->payload.data() + i * each, all[i]))
      return wrong_type(key, "an array of integers");
  if (all.size() != value->count) return wrong_type(key, "an array of integers");
  return all;
}

absl::StatusOr<std::vector<double>> GgufFile::numbers(std::string_view key) const {
  const absl::StatusOr<GgufValue> value = value_of(key, true);
  if (!value.ok()) return value.status();
  const size_t each = scalar_bytes(value->element);
  std::vector<double> all(each == 0 ? 0 : static_cast<size_t>(value->count));
  for (size_t i = 0; i < all.size(); ++i)
    if (!as_number(value->element, value->payload.data() + i * each, all[i]))
      return wrong_type(key, "an array of numbers");
  if (all.size() != value->count) return wrong_type(key, "an array of numbers");
  return all;
}

}  // namespace annulus::parallel
