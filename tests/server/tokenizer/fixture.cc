// SPDX-License-Identifier: Apache-2.0
#include "tests/server/tokenizer/fixture.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "parallel/model/gguf.h"
#include "parallel/model/mapped_file.h"
#include "server/tokenizer/byte_alphabet.h"
#include "server/tokenizer/load.h"

namespace annulus::server {
namespace {

std::string model_path() {
  if (const char* set = std::getenv("ANNULUS_MODEL")) return set;
  std::string cache;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME")) cache = xdg;
  if (const char* home = std::getenv("HOME"); cache.empty() && home)
    cache = std::string(home) + "/.cache";
  return cache + "/annulus/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

std::unique_ptr<const Tokenizer> load_smollm2() {
  const std::string path = model_path();
  auto file = parallel::MappedFile::open(path);
  if (!file.ok())
    throw std::runtime_error("no model at " + path +
                             ": run deploy/fetch-model, or set ANNULUS_MODEL");
  auto gguf = parallel::GgufFile::parse(file->bytes(), path);
  if (!gguf.ok()) throw std::runtime_error(gguf.status().ToString());
  auto made = tokenizer_from_gguf(*gguf);
  if (!made.ok()) throw std::runtime_error(made.status().ToString());
  return *std::move(made);
}

}  // namespace

std::vector<nlohmann::json> golden_lines(const std::string& name) {
  std::ifstream in(std::string(ANNULUS_GOLDEN_DIR) + "/" + name);
  if (!in) throw std::runtime_error("tests/golden/" + name + " is missing");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

const Tokenizer& smollm2() {
  static const std::unique_ptr<const Tokenizer> made = load_smollm2();
  return *made;
}

std::vector<ChatMessage> messages_of(const nlohmann::json& golden) {
  std::vector<ChatMessage> messages;
  for (const auto& m : golden.at("messages")) messages.push_back({m.at("role"), m.at("content")});
  return messages;
}

TokenizerData small_data(const std::vector<std::pair<std::string, std::string>>& merges) {
  TokenizerData data;
  data.source = "small";
  for (int byte = 0; byte < 256; ++byte)
    data.tokens.push_back(spelling_of_bytes(std::string(1, static_cast<char>(byte))));
  for (const auto& [left, right] : merges) data.tokens.push_back(left + right);
  data.kinds.assign(data.tokens.size(), TokenKind::kNormal);
  for (const char* control : {"<s>", "</s>"}) {
    data.tokens.push_back(control);
    data.kinds.push_back(TokenKind::kControl);
  }
  data.merges = merges;
  data.splits = {{kGpt2Pattern}};
  data.bos_id = static_cast<int64_t>(data.tokens.size()) - 2;
  data.eos_ids = {static_cast<int64_t>(data.tokens.size()) - 1};
  return data;
}

nlohmann::json small_json(const std::vector<std::pair<std::string, std::string>>& merges) {
  const TokenizerData data = small_data(merges);
  nlohmann::json json = {
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"model",
       {{"type", "BPE"}, {"vocab", nlohmann::json::object()}, {"merges", nlohmann::json::array()}}},
      {"added_tokens", nlohmann::json::array()}};
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (data.kinds[id] == TokenKind::kNormal)
      json["model"]["vocab"][data.tokens[id]] = id;
    else
      json["added_tokens"].push_back({{"id", id}, {"content", data.tokens[id]}, {"special", true}});
  }
  for (const auto& [left, right] : merges) json["model"]["merges"].push_back(left + " " + right);
  return json;
}

TempFolder::TempFolder() {
  std::string made = (std::filesystem::temp_directory_path() / "annulus-test-XXXXXX").string();
  if (mkdtemp(made.data()) == nullptr) throw std::runtime_error("cannot make a folder at " + made);
  path_ = made;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempFolder::write(const std::string& name, const std::string& text) const {
  const std::string path = path_ + "/" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

}  // namespace annulus::server
