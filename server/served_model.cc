// SPDX-License-Identifier: Apache-2.0
#include "server/served_model.h"

#include <string_view>
#include <utility>
#include <vector>

#include "server/tokenizer/load.h"

namespace annulus::server {

namespace {

using parallel::GgufFile;

// A key that is missing leaves the field empty; one of another type is an error.
template <class T, class Field>
absl::Status take(absl::StatusOr<T> value, Field& field) {
  if (value.ok()) {
    field = Field(*std::move(value));
  } else if (!absl::IsNotFound(value.status())) {
    return value.status();
  }
  return absl::OkStatus();
}

std::vector<std::string> owned(const std::vector<std::string_view>& views) {
  return {views.begin(), views.end()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer_from_gguf(const GgufFile& gguf) {
  GgufTokenizerFields fields;
  fields.source = gguf.label();
  absl::Status status;
  status.Update(take(gguf.string("tokenizer.ggml.model"), fields.model));
  status.Update(take(gguf.string("tokenizer.ggml.pre"), fields.pre));
  status.Update(take(gguf.string("tokenizer.chat_template"), fields.chat_template));
  status.Update(take(gguf.integer("tokenizer.ggml.bos_token_id"), fields.bos_id));
  status.Update(take(gguf.integer("tokenizer.ggml.eos_token_id"), fields.eos_id));
  status.Update(take(gguf.integer("tokenizer.ggml.eot_token_id"), fields.eot_id));
  status.Update(take(gguf.boolean("tokenizer.ggml.add_bos_token"), fields.add_bos));
  if (!status.ok()) return status;

  const auto tokens = gguf.strings("tokenizer.ggml.tokens");
  if (!tokens.ok()) return tokens.status();
  fields.tokens = owned(*tokens);
  const auto merges = gguf.strings("tokenizer.ggml.merges");
  if (!merges.ok()) return merges.status();
  fields.merges = owned(*merges);
  if (gguf.has("tokenizer.ggml.token_type")) {
    const auto types = gguf.integers("tokenizer.ggml.token_type");
    if (!types.ok()) return types.status();
    fields.token_types.assign(types->begin(), types->end());
  }
  return tokenizer_from_gguf_metadata(std::move(fields));
}

absl::StatusOr<ServedModel> open_model(const std::string& path,
                                       const parallel::ConfigOverrides& overrides) {
  auto checkpoint = parallel::Checkpoint::open(path, overrides);
  if (!checkpoint.ok()) return checkpoint.status();
  ServedModel model;
  model.checkpoint = std::make_shared<const parallel::Checkpoint>(*std::move(checkpoint));
  const GgufFile* gguf = model.checkpoint->gguf();
  auto tokenizer = gguf != nullptr ? tokenizer_from_gguf(*gguf)
                                   : tokenizer_from_json(model.checkpoint->directory());
  if (!tokenizer.ok()) return tokenizer.status();
  model.tokenizer = *std::move(tokenizer);
  return model;
}

}  // namespace annulus::server
