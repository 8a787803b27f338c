// SPDX-License-Identifier: Apache-2.0
// Makes a Tokenizer from the files of a model: the metadata of a GGUF file (read elsewhere: the
// fields come in as a struct), or a Hugging Face folder. Callers: server start-up, once. Pure but
// for reading files. Errors: InvalidArgument naming the file and the field, also for kinds of
// tokenizers that are not byte-level BPE; NotFound for a file that is not there. Any bytes are
// safe: sizes, ids and types are checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/model/gguf.h"
#include "server/tokenizer/tokenizer.h"

namespace annulus::server {

// The keys of a GGUF file under "tokenizer."; optional where files may lack them.
struct GgufTokenizerFields {
  std::string source;                // file name, for errors
  std::string model;                 // ggml.model; only "gpt2"
  std::string pre;                   // ggml.pre: smollm, llama-bpe, gpt-2 and their other names
  std::vector<std::string> tokens;   // ggml.tokens
  std::vector<int32_t> token_types;  // ggml.token_type; empty or one a token
  std::vector<std::string> merges;   // ggml.merges, "left right"
  std::optional<int64_t> bos_id;     // ggml.bos_token_id
  std::optional<int64_t> eos_id;     // ggml.eos_token_id
  std::optional<int64_t> eot_id;     // ggml.eot_token_id
  std::optional<bool> add_bos;       // ggml.add_bos_token
  std::string chat_template;         // chat_template
};

absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer_from_gguf_metadata(
    GgufTokenizerFields fields);

// The fields of a file that is open; a missing required key or a wrong type is an error.
absl::StatusOr<GgufTokenizerFields> gguf_tokenizer_fields(const parallel::GgufFile& file);

// Both steps in one.
absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer_from_gguf(
    const parallel::GgufFile& file);

// `path` is tokenizer.json or its folder. Beside it are read, where present: tokenizer_config.json
// (BOS, EOS, chat template), chat_template.jinja, generation_config.json or else config.json (EOS
// ids).
absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer_from_json(
    const std::filesystem::path& path);

// For a model without files: ids 0 to 255 are bytes, the last id ends an answer, others spell
// their number. InvalidArgument: fewer than 257 ids.
absl::StatusOr<std::unique_ptr<const Tokenizer>> byte_tokenizer(int32_t vocab);

}  // namespace annulus::server
