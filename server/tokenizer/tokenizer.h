// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back for byte-level BPE models, and chats to ids. Made by load.h from a
// GGUF file's metadata or a tokenizer.json. Callers: server/rpc (on its own threads), engine
// (incremental decoder, stop ids). Threads: everything is const after create(); any number of
// threads may encode at once. Ownership: all data is its own; IncrementalDecoder borrows it.
// Nothing adds BOS except encode_prompt and templates that write it. Errors: text that is not UTF-8
// is InvalidArgument and never repaired; malformed files, InvalidArgument naming the file and the
// field; a chat without a known template, FailedPrecondition.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/tokenizer/bpe.h"
#include "server/tokenizer/chat_template.h"
#include "server/tokenizer/pretokenizer.h"
#include "server/tokenizer/special_tokens.h"

namespace annulus::server {

enum class TokenKind : uint8_t {
  kNormal,   // spelled in the byte alphabet
  kControl,  // its text becomes it only where control tokens are parsed; hidden when decoding
  kAdded,    // its text always becomes it (user-defined tokens of GGUF, added tokens that are not
             // special)
  kUnused,   // an id without a text
};

// What a tokenizer file says, in any format.
struct TokenizerData {
  std::string source;                                       // names the file in errors
  std::vector<std::string> tokens;                          // by id, as spelled in the file
  std::vector<TokenKind> kinds;                             // by id
  std::vector<std::pair<std::string, std::string>> merges;  // spellings; rank = index
  std::vector<SplitRule> splits;
  bool ignore_merges = false;  // a piece that is a token is taken whole before any merge
  bool add_bos = false;
  std::optional<int64_t> bos_id;
  std::optional<int64_t>
      unk_id;  // written for a byte that has no token; without it such a byte vanishes
  std::vector<int64_t> eos_ids;
  std::string chat_template;  // Jinja; "" when the file has none
};

class Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> create(const TokenizerData& data);

  // parse_special: whether "<|im_end|>" in the text becomes that control token or stays plain
  // characters.
  absl::StatusOr<std::vector<int32_t>> encode(std::string_view text, bool parse_special) const;

  // A text prompt as the model expects it: encode(), after BOS if the file asks for one.
  absl::StatusOr<std::vector<int32_t>> encode_prompt(std::string_view text,
                                                     bool parse_special) const;

  // The whole chat. Only control tokens that the template itself writes become control tokens.
  absl::StatusOr<std::vector<int32_t>> encode_chat(std::span<const ChatMessage> messages,
                                                   bool add_generation_prompt) const;
  absl::StatusOr<std::string> render_chat(std::span<const ChatMessage> messages,
                                          bool add_generation_prompt) const;

  // Invalid bytes become U+FFFD. An id outside the vocabulary is InvalidArgument.
  absl::StatusOr<std::string> decode(std::span<const int32_t> ids, bool show_special) const;

  int64_t vocab_size() const { return static_cast<int64_t>(kinds_.size()); }
  bool is_control(int32_t id) const { return in_vocabulary(id) && kind(id) == TokenKind::kControl; }
  // What a token stands for, perhaps a part of a character; a control token stands for its name, an
  // id outside the vocabulary (models pad theirs) for nothing.
  std::string_view token_bytes(int32_t id) const;
  int64_t longest_token_bytes() const { return longest_token_bytes_; }
  std::optional<int32_t> control_id(std::string_view name) const;

  bool add_bos() const { return add_bos_; }
  std::optional<int32_t> bos_id() const { return bos_id_; }
  // Ids that end an answer: those of the file and the chat template's end of turn. Sorted.
  const std::vector<int32_t>& eos_ids() const { return eos_ids_; }
  // OK when encode_chat can work; else why not.
  absl::Status chat_status() const { return chat_.status(); }

 private:
  struct Cache;

  Tokenizer() : chat_(absl::FailedPreconditionError("")) {}
  absl::Status set_vocabulary(const TokenizerData& data);
  absl::Status set_merges(const TokenizerData& data);
  absl::Status set_special(const TokenizerData& data);
  void set_chat(const TokenizerData& data);

  bool in_vocabulary(int64_t id) const { return id >= 0 && id < vocab_size(); }
  TokenKind kind(int32_t id) const { return kinds_[static_cast<size_t>(id)]; }
  absl::Status append_text(std::string_view text, Cache& cache, std::vector<int32_t>& ids) const;
  absl::StatusOr<std::vector<ChatSegment>> chat_segments(std::span<const ChatMessage> messages,
                                                         bool add_generation_prompt) const;

  std::vector<TokenKind> kinds_;
  std::vector<std::string> bytes_;  // by id
  int64_t longest_token_bytes_ = 0;
  absl::flat_hash_map<std::string_view, int32_t>
      whole_;  // bytes of normal tokens, when merges are ignored; views bytes_
  absl::flat_hash_map<std::string_view, int32_t> controls_;  // by name; views bytes_
  Bpe bpe_;
  std::optional<PreTokenizer> pretokenizer_;
  SpecialTokens added_;        // always found
  SpecialTokens all_special_;  // these and control tokens
  bool add_bos_ = false;
  std::optional<int32_t> bos_id_;
  std::vector<int32_t> eos_ids_;
  absl::StatusOr<ChatTemplate> chat_;
};

}  // namespace annulus::server
