// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/model/gguf.h"

namespace annulus::parallel {
namespace {

using nlohmann::json;

// A tensor takes about 120 bytes of header, so this is room for 100,000 of them; the limit bounds
// what a hostile file makes us allocate.
constexpr uint64_t kMaxHeaderBytes = uint64_t{16} << 20;
constexpr int64_t kMaxElements = int64_t{1} << 48;
constexpr int kMaxDepth = 8;

int64_t dtype_bytes(std::string_view dtype) {
  constexpr std::pair<std::string_view, int64_t> kSizes[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2},  {"BF16", 2},    {"I64", 8},
      {"I32", 4}, {"I16", 2}, {"I8", 1},   {"U64", 8},     {"U32", 4},
      {"U16", 2}, {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (const auto& [name, bytes] : kSizes)
    if (name == dtype) return bytes;
  return 0;
}

// JSON with the two things that the library lets pass refused: keys given twice and deep nesting.
absl::StatusOr<json> parse_strictly(std::string_view text, const std::string& label) {
  std::vector<std::set<std::string>> keys;
  std::string problem;
  const json::parser_callback_t watch = [&](int, json::parse_event_t event, json& value) {
    if (!problem.empty()) return false;
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
      if (keys.size() > kMaxDepth) problem = "is nested too deeply";
    } else if (event == json::parse_event_t::array_start) {
      keys.emplace_back();
      if (keys.size() > kMaxDepth) problem = "is nested too deeply";
    } else if (event == json::parse_event_t::object_end ||
               event == json::parse_event_t::array_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key) {
      const std::string& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second)
        problem = absl::StrCat("holds ", quote_name(key), " twice");
    }
    return problem.empty();
  };
  json parsed = json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (problem.empty() && !parsed.is_object()) problem = "is not a JSON object";
  if (!problem.empty())
    return absl::InvalidArgumentError(absl::StrCat(
        label, ": the header ", problem, "; the file is damaged or incomplete, fetch it again"));
  return parsed;
}

// Fills `tensor` from its header entry; nullptr, or what is wrong.
const char* read_entry(const json& entry, std::span<const std::byte> data, SafeTensor& tensor) {
  if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") ||
      !entry.contains("shape") || !entry.contains("data_offsets"))
    return "is not described by dtype, shape and data_offsets";
  if (!entry["dtype"].is_string()) return "has no readable dtype";
  tensor.dtype = entry["dtype"].get<std::string>();
  const int64_t each = dtype_bytes(tensor.dtype);
  if (each == 0) return "has a dtype that is unknown here (is the file newer than Annulus?)";

  const json& shape = entry["shape"];
  if (!shape.is_array() || shape.size() > 8) return "has no readable shape";
  int64_t elements = 1;
  for (const json& dim : shape) {
    if (!dim.is_number_unsigned()) return "has no readable shape";
    const uint64_t size = dim.get<uint64_t>();
    if (size > static_cast<uint64_t>(kMaxElements / std::max(elements, int64_t{1})))
      return "has an impossible shape";
    elements *= static_cast<int64_t>(size);
    tensor.shape.push_back(static_cast<int64_t>(size));
  }

  const json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    return "has no readable data_offsets";
  const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  if (begin > end || end > data.size()) return "reaches past the end of the file";
  if (end - begin != static_cast<uint64_t>(elements * each))
    return "has a shape that does not match its bytes";
  tensor.data = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  return nullptr;
}

}  // namespace

std::optional<kernels::WeightFormat> safetensors_weight_format(std::string_view dtype) {
  if (dtype == "F32") return kernels::WeightFormat::kF32;
  if (dtype == "F16") return kernels::WeightFormat::kF16;
  if (dtype == "BF16") return kernels::WeightFormat::kBF16;
  if (dtype == "F8_E4M3") return kernels::WeightFormat::kF8E4M3;
  return std::nullopt;
}

absl::StatusOr<SafeTensors> parse_safetensors(std::span<const std::byte> file,
                                              const std::string& label) {
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(
        absl::StrCat(label, ": ", parts..., "; the file is damaged or incomplete, fetch it again"));
  };
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) return bad("too short for a safetensors file");
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  file = file.subspan(sizeof(header_bytes));
  if (header_bytes > file.size() || header_bytes > kMaxHeaderBytes)
    return bad("claims a header of ", header_bytes, " bytes");
  const std::span<const std::byte> data = file.subspan(static_cast<size_t>(header_bytes));
  const absl::StatusOr<json> header = parse_strictly(
      {reinterpret_cast<const char*>(file.data()), static_cast<size_t>(header_bytes)}, label);
  if (!header.ok()) return header.status();

  SafeTensors tensors;
  std::vector<std::pair<std::span<const std::byte>, const std::string*>> ranges;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;
    SafeTensor tensor;
    if (const char* problem = read_entry(entry, data, tensor))
      return bad("tensor ", quote_name(name), " ", problem);
    const auto it = tensors.emplace(name, std::move(tensor)).first;
    if (!it->second.data.empty()) ranges.emplace_back(it->second.data, &it->first);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.first.data() < b.first.data(); });
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i - 1].first.data() + ranges[i - 1].first.size() > ranges[i].first.data())
      return bad("tensors ", quote_name(*ranges[i - 1].second), " and ",
                 quote_name(*ranges[i].second), " overlap");
  return tensors;
}

absl::StatusOr<std::map<std::string, std::string>> parse_safetensors_index(
    std::string_view text, const std::string& label) {
  const absl::StatusOr<json> index = parse_strictly(text, label);
  if (!index.ok()) return index.status();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object() || map->empty())
    return absl::InvalidArgumentError(absl::StrCat(label, ": holds no weight_map of tensors"));
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string())
      return absl::InvalidArgumentError(
          absl::StrCat(label, ": tensor ", quote_name(name), " is not mapped to a file name"));
    const std::string& shard = file.get_ref<const std::string&>();
    // A plain name: an index must not make us read files elsewhere.
    if (shard.empty() || shard[0] == '.' || shard.find('/') != std::string::npos ||
        shard.find('\0') != std::string::npos)
      return absl::InvalidArgumentError(absl::StrCat(label, ": tensor ", quote_name(name),
                                                     " is in ", quote_name(shard),
                                                     ", which is not a plain file name"));
    files.emplace(name, shard);
  }
  return files;
}

absl::StatusOr<SafetensorsFolder> open_safetensors_file(const std::string& path) {
  absl::StatusOr<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<SafeTensors> tensors = parse_safetensors(file->bytes(), path);
  if (!tensors.ok()) return tensors.status();
  SafetensorsFolder folder;
  folder.files.push_back(std::move(*file));
  folder.tensors = std::move(*tensors);
  return folder;
}

absl::StatusOr<SafetensorsFolder> open_safetensors_folder(const std::string& directory) {
  const std::string single = directory + "/model.safetensors", index_path = single + ".index.json";
  struct stat info = {};
  if (stat(index_path.c_str(), &info) != 0) {
    if (stat(single.c_str(), &info) == 0) return open_safetensors_file(single);
    return absl::NotFoundError(absl::StrCat(
        directory, ": holds neither model.safetensors.index.json nor model.safetensors"));
  }
  const absl::StatusOr<MappedFile> index_file = MappedFile::open(index_path);
  if (!index_file.ok()) return index_file.status();
  if (index_file->bytes().size() > kMaxHeaderBytes)
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": too large for an index"));
  const auto index = parse_safetensors_index(
      {reinterpret_cast<const char*>(index_file->bytes().data()), index_file->bytes().size()},
      index_path);
  if (!index.ok()) return index.status();

  SafetensorsFolder folder;
  std::map<std::string, SafeTensors> shards;
  for (const auto& [name, shard] : *index) {
    const std::string path = absl::StrCat(directory, "/", shard);
    auto it = shards.find(shard);
    if (it == shards.end()) {
      absl::StatusOr<SafetensorsFolder> opened = open_safetensors_file(path);
      if (absl::IsNotFound(opened.status()))
        return absl::NotFoundError(absl::StrCat(path, ": listed in ", index_path,
                                                " but missing; the download is incomplete"));
      if (!opened.ok()) return opened.status();
      folder.files.push_back(std::move(opened->files[0]));
      it = shards.emplace(shard, std::move(opened->tensors)).first;
    }
    const auto tensor = it->second.find(name);
    if (tensor == it->second.end())
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", quote_name(name),
                                                     " is missing, though ", index_path,
                                                     " puts it here"));
    folder.tensors.emplace(name, tensor->second);
  }
  return folder;
}

}  // namespace annulus::parallel
