// SPDX-License-Identifier: Apache-2.0
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <utility>

#include "kernels/core/check.h"
#include "server/tokenizer/load.h"

namespace annulus::server {
namespace {

using Json = nlohmann::json;
using kernels::concat;

constexpr std::uintmax_t kMaxFileBytes = 256u << 20;
constexpr int64_t kMaxId = (int64_t{1} << 24) - 1;
constexpr int64_t kMaxHoles = 1 << 16;  // ids without a token; more is a broken file

absl::StatusOr<std::string> read_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error)
    return absl::NotFoundError(
        concat(path.string(), ": ", error.message(), "; the model's folder needs this file"));
  if (size > kMaxFileBytes)
    return absl::InvalidArgumentError(
        concat(path.string(), ": ", size, " bytes; a tokenizer file has at most ", kMaxFileBytes));
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return absl::NotFoundError(concat(path.string(), ": cannot be read"));
  return std::move(text).str();
}

absl::StatusOr<Json> read_json(const std::filesystem::path& path) {
  absl::StatusOr<std::string> text = read_file(path);
  if (!text.ok()) return text.status();
  try {
    Json json = Json::parse(*text);
    if (!json.is_object())
      return absl::InvalidArgumentError(concat(path.string(), ": is not a JSON object"));
    return json;
  } catch (const Json::exception& error) {  // the only way to learn where it is malformed
    return absl::InvalidArgumentError(
        concat(path.string(), ": is damaged, fetch it again (", error.what(), ")"));
  }
}

// A file that may be missing: an empty object then.
absl::StatusOr<Json> read_optional(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return Json::object();
  return read_json(path);
}

const Json& field(const Json& object, const char* name) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(name);
  return found == object.end() ? kNull : *found;
}

bool is_true(const Json& value) {
  return value.is_boolean() && value.get<bool>();
}
bool is_set(const Json& value) {  // neither null, false nor ""
  // NOLINTNEXTLINE(readability-container-size-empty): empty() is false for every string
  return !value.is_null() && value != false && value != "";
}

std::optional<int64_t> as_id(const Json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kMaxId))
    return std::nullopt;
  const auto id = value.get<int64_t>();
  return id >= 0 && id <= kMaxId ? std::optional(id) : std::nullopt;
}

// Turns "pre_tokenizer" into rules. It must end in ByteLevel, which brings the byte alphabet.
class PreTokenizerReader {
 public:
  PreTokenizerReader(const std::string& source, std::vector<SplitRule>& rules)
      : source_(source), rules_(rules) {}

  absl::Status read(const Json& json) {
    if (absl::Status s = add(json, "pre_tokenizer", 0); !s.ok()) return s;
    return byte_level_
               ? absl::OkStatus()
               : malformed("pre_tokenizer", "has no ByteLevel; only byte-level BPE is supported");
  }

 private:
  static constexpr int kMaxDepth = 8;

  absl::Status malformed(std::string_view where, std::string_view what) const {
    return absl::InvalidArgumentError(concat(source_, ": ", where, ": ", what));
  }

  absl::Status add(const Json& json, const std::string& where, int depth) {
    const Json& type = field(json, "type");
    if (byte_level_ || depth > kMaxDepth) return malformed(where, "nothing may follow ByteLevel");
    if (type == "Sequence") {
      const Json& list = field(json, "pretokenizers");
      if (!list.is_array()) return malformed(where, "pretokenizers must be a list");
      for (size_t i = 0; i < list.size(); ++i)
        if (absl::Status s = add(list[i], concat(where, ".pretokenizers[", i, "]"), depth + 1);
            !s.ok())
          return s;
      return absl::OkStatus();
    }
    if (type == "Digits") {
      rules_.push_back(
          {is_true(field(json, "individual_digits")) ? kNumberPattern : kNumbersPattern});
      return absl::OkStatus();
    }
    if (type == "Split") return add_split(json, where);
    if (type == "ByteLevel") {
      if (field(json, "add_prefix_space") != false)
        return malformed(where, "add_prefix_space is not supported");
      if (field(json, "use_regex") != false) rules_.push_back({kGpt2Pattern});
      byte_level_ = true;
      return absl::OkStatus();
    }
    return malformed(where, concat("type ", type.is_string() ? type.get<std::string>() : "(none)",
                                   " is not supported; Sequence, Split, Digits and ByteLevel are"));
  }

  absl::Status add_split(const Json& json, const std::string& where) {
    constexpr std::pair<const char*, SplitBehavior> kNames[] = {
        {"Isolated", SplitBehavior::kIsolated},
        {"Removed", SplitBehavior::kRemoved},
        {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
        {"MergedWithNext", SplitBehavior::kMergedWithNext},
        {"Contiguous", SplitBehavior::kContiguous}};
    SplitRule rule;
    const Json& pattern = field(json, "pattern");
    if (const Json& regex = field(pattern, "Regex"); regex.is_string())
      rule.pattern = regex.get<std::string>();
    else if (const Json& text = field(pattern, "String"); text.is_string())
      rule.pattern = literal_pattern(text.get_ref<const std::string&>());
    if (rule.pattern.empty()) return malformed(where, "pattern must be a Regex or a String");
    const Json& behavior = field(json, "behavior");
    bool known = false;
    for (const auto& [name, value] : kNames) {
      if (behavior != name) continue;
      rule.behavior = value;
      known = true;
    }
    if (!known) return malformed(where, "behavior is not known");
    rule.invert = is_true(field(json, "invert"));
    rules_.push_back(std::move(rule));
    return absl::OkStatus();
  }

  const std::string& source_;
  std::vector<SplitRule>& rules_;
  bool byte_level_ = false;
};

class Loader {
 public:
  explicit Loader(const std::filesystem::path& path) : path_(path) { data_.source = path.string(); }

  absl::StatusOr<TokenizerData> load() {
    const absl::StatusOr<Json> root = read_json(path_);
    if (!root.ok()) return root.status();
    id_limit_ = kMaxHoles + static_cast<int64_t>(field(field(*root, "model"), "vocab").size() +
                                                 field(*root, "added_tokens").size());
    if (is_set(field(*root, "normalizer"))) {
      const Json& normalizers = field(field(*root, "normalizer"), "normalizers");
      if (!normalizers.is_array() || !normalizers.empty())
        return malformed("normalizer: not supported; byte-level BPE of Llama models has none");
    }
    for (const absl::Status& s :
         {read_model(field(*root, "model")), read_added(field(*root, "added_tokens")),
          PreTokenizerReader(data_.source, data_.splits).read(field(*root, "pre_tokenizer")),
          read_post_processor(field(*root, "post_processor")), read_config(), read_stops()})
      if (!s.ok()) return s;
    return std::move(data_);
  }

 private:
  absl::Status malformed(const std::string& what) const {
    return absl::InvalidArgumentError(concat(data_.source, ": ", what));
  }

  absl::Status set_token(const Json& id_value, const std::string& text, TokenKind kind,
                         const std::string& where) {
    const std::optional<int64_t> id = as_id(id_value);
    if (!id || *id >= id_limit_)
      return malformed(concat(where, ": the id must be an integer from 0 to ", id_limit_ - 1));
    const auto at = static_cast<size_t>(*id);
    if (at >= data_.tokens.size()) {
      data_.tokens.resize(at + 1);
      data_.kinds.resize(at + 1, TokenKind::kUnused);
    }
    if (data_.kinds[at] != TokenKind::kUnused && data_.tokens[at] != text)
      return malformed(concat(where, ": id ", at, " is that of another token"));
    data_.tokens[at] = text;
    data_.kinds[at] = kind;
    return absl::OkStatus();
  }

  absl::Status read_model(const Json& model) {
    if (!model.is_object()) return malformed("model: missing");
    const Json& type = field(model, "type");
    if (!type.is_null() && type != "BPE") return malformed("model.type: only BPE is supported");
    for (const char* name :
         {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"})
      if (is_set(field(model, name))) return malformed(concat("model.", name, ": not supported"));
    const Json& vocab = field(model, "vocab");
    if (!vocab.is_object()) return malformed("model.vocab: must be an object of token to id");
    for (const auto& [token, id] : vocab.items())
      if (absl::Status s = set_token(id, token, TokenKind::kNormal, "model.vocab"); !s.ok())
        return s;
    if (const Json& unk = field(model, "unk_token"); unk.is_string()) {
      const auto id = vocab.find(unk.get_ref<const std::string&>());
      if (id == vocab.end()) return malformed("model.unk_token: is not in model.vocab");
      data_.unk_id = as_id(*id);
    }
    data_.ignore_merges = is_true(field(model, "ignore_merges"));
    const Json& merges = field(model, "merges");
    if (!merges.is_array()) return malformed("model.merges: must be a list");
    data_.merges.reserve(merges.size());
    for (size_t i = 0; i < merges.size(); ++i)
      if (!read_merge(merges[i]))
        return malformed(concat("model.merges[", i, "]: is not two tokens"));
    return absl::OkStatus();
  }

  bool read_merge(const Json& merge) {  // "left right", or since 2024 ["left", "right"]
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string::npos) return false;
      data_.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
      return true;
    }
    if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string())
      return false;
    data_.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    return true;
  }

  absl::Status read_added(const Json& added) {
    if (added.is_null()) return absl::OkStatus();
    if (!added.is_array()) return malformed("added_tokens: must be a list");
    for (size_t i = 0; i < added.size(); ++i) {
      const std::string where = concat("added_tokens[", i, "]");
      const Json& content = field(added[i], "content");
      // NOLINTNEXTLINE(readability-container-size-empty): a string that is "" is not an empty Json.
      if (!content.is_string() || content == "")
        return malformed(concat(where, ".content: must be a text"));
      for (const char* name : {"single_word", "lstrip", "rstrip"})
        if (is_true(field(added[i], name)))
          return malformed(concat(where, ".", name, ": not supported"));
      const TokenKind kind =
          is_true(field(added[i], "special")) ? TokenKind::kControl : TokenKind::kAdded;
      if (absl::Status s =
              set_token(field(added[i], "id"), content.get_ref<const std::string&>(), kind, where);
          !s.ok())
        return s;
    }
    return absl::OkStatus();
  }

  // Llama 3 asks for BOS here: a TemplateProcessing, perhaps in a Sequence, that begins with a
  // special token.
  absl::Status read_post_processor(const Json& processor) {
    const Json& list = field(processor, "processors");
    for (size_t i = 0; list.is_array() && i < list.size(); ++i)
      if (field(list[i], "type") == "TemplateProcessing") return read_post_processor(list[i]);
    if (field(processor, "type") != "TemplateProcessing") return absl::OkStatus();
    const Json& single = field(processor, "single");
    if (!single.is_array() || single.empty()) return absl::OkStatus();
    const Json& name = field(field(single[0], "SpecialToken"), "id");
    if (!name.is_string()) return absl::OkStatus();
    data_.bos_id = id_of(name.get_ref<const std::string&>());
    if (!data_.bos_id) return malformed("post_processor.single[0]: is not a token");
    data_.add_bos = true;
    return absl::OkStatus();
  }

  // Special tokens only: a name is looked up a few times, so a scan is enough.
  std::optional<int64_t> id_of(const std::string& name) const {
    for (size_t i = 0; i < data_.tokens.size(); ++i)
      if (data_.kinds[i] != TokenKind::kUnused && data_.tokens[i] == name)
        return static_cast<int64_t>(i);
    return std::nullopt;
  }

  absl::Status read_config() {
    const std::filesystem::path path = path_.parent_path() / "tokenizer_config.json";
    const absl::StatusOr<Json> config = read_optional(path);
    if (!config.ok()) return config.status();
    const auto named = [&](const char* key) -> absl::StatusOr<std::optional<int64_t>> {
      const Json& value = field(*config, key);
      const Json& name = value.is_object() ? field(value, "content") : value;
      if (!name.is_string()) return std::optional<int64_t>();
      const std::optional<int64_t> id = id_of(name.get_ref<const std::string&>());
      if (!id)
        return absl::InvalidArgumentError(concat(path.string(), ": ", key, ": is not a token"));
      return id;
    };
    const auto bos = named("bos_token");
    if (!bos.ok()) return bos.status();
    const auto eos = named("eos_token");
    if (!eos.ok()) return eos.status();
    if (*bos && !data_.bos_id) data_.bos_id = *bos;
    if (*eos) data_.eos_ids.push_back(**eos);
    if (is_true(field(*config, "add_bos_token")) && data_.bos_id) data_.add_bos = true;
    return read_chat_template(field(*config, "chat_template"));
  }

  absl::Status read_chat_template(const Json& value) {
    const std::filesystem::path path = path_.parent_path() / "chat_template.jinja";
    if (std::filesystem::exists(path)) {
      absl::StatusOr<std::string> text = read_file(path);
      if (!text.ok()) return text.status();
      data_.chat_template = *std::move(text);
      return absl::OkStatus();
    }
    if (value.is_string()) data_.chat_template = value.get<std::string>();
    for (size_t i = 0; value.is_array() && i < value.size(); ++i) {  // several, each with a name
      const Json& text = field(value[i], "template");
      if (field(value[i], "name") == "default" && text.is_string())
        data_.chat_template = text.get<std::string>();
    }
    return absl::OkStatus();
  }

  absl::Status read_stops() {
    std::filesystem::path path = path_.parent_path() / "generation_config.json";
    if (!std::filesystem::exists(path)) path.replace_filename("config.json");
    const absl::StatusOr<Json> config = read_optional(path);
    if (!config.ok()) return config.status();
    const auto bad = [&](const char* key) {
      return absl::InvalidArgumentError(concat(path.string(), ": ", key, ": must be a token id"));
    };
    const Json& eos = field(*config, "eos_token_id");
    // One id or a list of them; in place, because a copy recurses as deep as a hostile file nests.
    const size_t count = eos.is_null() ? 0 : eos.is_array() ? eos.size() : 1;
    for (size_t i = 0; i < count; ++i) {
      const std::optional<int64_t> id = as_id(eos.is_array() ? eos[i] : eos);
      if (!id) return bad("eos_token_id");
      data_.eos_ids.push_back(*id);
    }
    if (const Json& bos = field(*config, "bos_token_id"); !bos.is_null() && !data_.bos_id) {
      data_.bos_id = as_id(bos);
      if (!data_.bos_id) return bad("bos_token_id");
    }
    return absl::OkStatus();
  }

  std::filesystem::path path_;
  int64_t id_limit_ = 0;
  TokenizerData data_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer_from_json(
    const std::filesystem::path& path) {
  std::error_code error;
  const bool folder = std::filesystem::is_directory(path, error);
  absl::StatusOr<TokenizerData> data = Loader(folder ? path / "tokenizer.json" : path).load();
  if (!data.ok()) return data.status();
  return Tokenizer::create(*data);
}

}  // namespace annulus::server
