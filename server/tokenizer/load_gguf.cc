// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "kernels/core/check.h"
#include "server/tokenizer/load.h"

namespace annulus::server {
namespace {

// tokenizer.ggml.token_type
enum GgufTokenType : int32_t {
  kGgufNormal = 1,
  kGgufUnknown = 2,
  kGgufControl = 3,
  kGgufUserDefined = 4,
  kGgufUnused = 5,
  kGgufByte = 6,
};

absl::Status malformed(const GgufTokenizerFields& fields, const std::string& what) {
  return absl::InvalidArgumentError(kernels::concat(fields.source, ": ", what));
}

std::optional<TokenKind> kind_of(int32_t type) {
  switch (type) {
    case kGgufNormal:
    case kGgufByte: return TokenKind::kNormal;
    case kGgufUnknown:
    case kGgufControl: return TokenKind::kControl;
    case kGgufUserDefined: return TokenKind::kAdded;
    case kGgufUnused: return TokenKind::kUnused;
    default: return std::nullopt;
  }
}

// What llama.cpp's converter means by each name.
absl::Status set_pretokenizer(const GgufTokenizerFields& fields, TokenizerData& data) {
  const std::string& pre = fields.pre;
  if (pre == "smollm") {
    data.splits = {{kNumberPattern}, {kGpt2Pattern}};
  } else if (pre == "gpt-2" || pre == "gpt2") {
    data.splits = {{kGpt2Pattern}};
  } else if (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3") {
    data.splits = {{kLlama3Pattern}};
    data.ignore_merges = true;
    data.add_bos = true;  // unless the file says otherwise
  } else {
    return malformed(fields,
                     kernels::concat("tokenizer.ggml.pre \"", pre,
                                     "\" is not supported; smollm, llama-bpe and gpt-2 are"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer_from_gguf_metadata(
    GgufTokenizerFields fields) {
  if (fields.model != "gpt2")
    return malformed(fields, kernels::concat("tokenizer.ggml.model \"", fields.model,
                                             "\" is not supported; only gpt2 (byte-level BPE) is"));
  TokenizerData data;
  data.source = fields.source;
  if (absl::Status s = set_pretokenizer(fields, data); !s.ok()) return s;
  if (!fields.token_types.empty() && fields.token_types.size() != fields.tokens.size())
    return malformed(fields,
                     kernels::concat("tokenizer.ggml.token_type has ", fields.token_types.size(),
                                     " entries for ", fields.tokens.size(), " tokens"));
  data.kinds.assign(fields.tokens.size(), TokenKind::kNormal);
  for (size_t i = 0; i < fields.token_types.size(); ++i) {
    const std::optional<TokenKind> kind = kind_of(fields.token_types[i]);
    if (!kind)
      return malformed(fields, kernels::concat("tokenizer.ggml.token_type[", i, "] is ",
                                               fields.token_types[i], "; types are 1 to 6"));
    data.kinds[i] = *kind;
  }
  data.merges.reserve(fields.merges.size());
  for (size_t i = 0; i < fields.merges.size(); ++i) {
    const std::string& merge = fields.merges[i];
    const size_t space = merge.find(' ');
    if (space == std::string::npos || space == 0 || space + 1 == merge.size())
      return malformed(fields, kernels::concat("tokenizer.ggml.merges[", i, "] is not two tokens"));
    data.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  data.bos_id = fields.bos_id;
  for (const std::optional<int64_t>& id : {fields.eos_id, fields.eot_id})
    if (id) data.eos_ids.push_back(*id);
  if (fields.add_bos) data.add_bos = *fields.add_bos;
  data.chat_template = std::move(fields.chat_template);
  data.tokens = std::move(fields.tokens);
  return Tokenizer::create(data);
}

absl::StatusOr<GgufTokenizerFields> gguf_tokenizer_fields(const parallel::GgufFile& file) {
  GgufTokenizerFields fields;
  fields.source = file.label();
  absl::Status status;
  // Stores a value, or remembers the first error; a key that a file may lack is left alone.
  const auto take = [&](auto value, bool required, auto store) {
    if (value.ok())
      store(*std::move(value));
    else if (status.ok() && (required || !absl::IsNotFound(value.status())))
      status = absl::InvalidArgumentError(value.status().message());
  };
  const auto text = [](std::string& to) { return [&to](std::string_view s) { to = s; }; };
  const auto texts = [](std::vector<std::string>& to) {
    return
        [&to](const std::vector<std::string_view>& list) { to.assign(list.begin(), list.end()); };
  };
  take(file.string("tokenizer.ggml.model"), true, text(fields.model));
  take(file.string("tokenizer.ggml.pre"), true, text(fields.pre));
  take(file.strings("tokenizer.ggml.tokens"), true, texts(fields.tokens));
  take(file.strings("tokenizer.ggml.merges"), true, texts(fields.merges));
  take(file.integers("tokenizer.ggml.token_type"), false, [&](const std::vector<int64_t>& types) {
    for (const int64_t type : types)  // one that does not fit becomes 0, which is no type
      fields.token_types.push_back(type >= 1 && type <= kGgufByte ? static_cast<int32_t>(type) : 0);
  });
  const auto number = [](std::optional<int64_t>& to) { return [&to](int64_t id) { to = id; }; };
  take(file.integer("tokenizer.ggml.bos_token_id"), false, number(fields.bos_id));
  take(file.integer("tokenizer.ggml.eos_token_id"), false, number(fields.eos_id));
  take(file.integer("tokenizer.ggml.eot_token_id"), false, number(fields.eot_id));
  take(file.boolean("tokenizer.ggml.add_bos_token"), false, [&](bool on) { fields.add_bos = on; });
  take(file.string("tokenizer.chat_template"), false, text(fields.chat_template));
  if (!status.ok()) return status;
  return fields;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer_from_gguf(
    const parallel::GgufFile& file) {
  absl::StatusOr<GgufTokenizerFields> fields = gguf_tokenizer_fields(file);
  if (!fields.ok()) return fields.status();
  return tokenizer_from_gguf_metadata(*std::move(fields));
}

}  // namespace annulus::server
