// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/tokenizer.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "kernels/core/check.h"
#include "server/tokenizer/byte_alphabet.h"
#include "server/tokenizer/incremental_decoder.h"
#include "server/tokenizer/utf8.h"

namespace annulus::server {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 24;
constexpr size_t kMaxTextBytes = size_t{1} << 30;  // positions within a piece are 32 bit
constexpr size_t kCachedPieceBytes = 256;

absl::Status malformed(const TokenizerData& data, const std::string& what) {
  return absl::InvalidArgumentError(kernels::concat(data.source, ": ", what));
}

absl::Status outside(const TokenizerData& data, std::string_view what, int64_t id) {
  return malformed(data, kernels::concat(what, " ", id, " is not in the vocabulary of ",
                                         data.tokens.size(), " tokens"));
}

// A spelling for an error message: short, and printable whatever the file holds.
std::string quoted(std::string_view spelling) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : spelling.substr(0, 40)) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte < 0x20 || byte >= 0x7F)
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    else
      out += c;
  }
  return out + (spelling.size() > 40 ? "...\"" : "\"");
}

}  // namespace

// Pieces of one call that were encoded already, as stretches of its ids: prompts repeat their
// words. It lives for one call, so that encoding shares no state between threads and nothing grows
// with the life of the server.
struct Tokenizer::Cache {
  struct Stretch {
    size_t begin;
    size_t count;
  };
  absl::flat_hash_map<std::string_view, Stretch> known;  // views the text of the call
  std::vector<std::string_view> pieces;
  Bpe::Scratch scratch;
};

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::create(const TokenizerData& data) {
  std::unique_ptr<Tokenizer> made(new Tokenizer);
  if (absl::Status s = made->set_vocabulary(data); !s.ok()) return s;
  if (absl::Status s = made->set_merges(data); !s.ok()) return s;
  absl::StatusOr<PreTokenizer> pretokenizer = PreTokenizer::create(data.splits);
  if (!pretokenizer.ok()) return malformed(data, std::string(pretokenizer.status().message()));
  made->pretokenizer_ = *std::move(pretokenizer);
  if (absl::Status s = made->set_special(data); !s.ok()) return s;
  made->set_chat(data);
  return std::unique_ptr<const Tokenizer>(std::move(made));
}

absl::Status Tokenizer::set_vocabulary(const TokenizerData& data) {
  const size_t count = data.tokens.size();
  if (count == 0) return malformed(data, "the vocabulary is empty");
  if (count > kMaxTokens)
    return malformed(data,
                     kernels::concat(count, " tokens; at most ", kMaxTokens, " are supported"));
  if (data.kinds.size() != count)
    return malformed(data,
                     kernels::concat(data.kinds.size(), " token types for ", count, " tokens"));
  kinds_ = data.kinds;
  bytes_.reserve(count);
  bool any_byte = false;
  for (size_t i = 0; i < count; ++i) {
    const auto id = static_cast<int32_t>(i);
    std::optional<std::string> bytes;
    if (kinds_[i] == TokenKind::kNormal) bytes = bytes_of_spelling(data.tokens[i]);
    const bool spelled = bytes.has_value();  // else the token stands for its text as it is
    bytes_.push_back(spelled ? *std::move(bytes) : data.tokens[i]);
    longest_token_bytes_ = std::max(longest_token_bytes_, std::ssize(bytes_.back()));
    if (spelled && bytes_[i].size() == 1) {
      bpe_.set_byte(static_cast<uint8_t>(bytes_[i][0]), id);
      any_byte = true;
    }
  }
  if (!any_byte)
    return malformed(data, "no token stands for a single byte: not a byte-level vocabulary");
  if (data.unk_id && !in_vocabulary(*data.unk_id))
    return outside(data, "unknown-token id", *data.unk_id);
  if (data.unk_id) bpe_.set_missing_bytes(static_cast<int32_t>(*data.unk_id));
  for (size_t i = 0; i < count; ++i) {  // bytes_ no longer moves: views are safe
    if (kinds_[i] == TokenKind::kControl && !bytes_[i].empty())
      controls_.emplace(bytes_[i], static_cast<int32_t>(i));
    if (kinds_[i] == TokenKind::kNormal && data.ignore_merges)
      whole_.emplace(bytes_[i], static_cast<int32_t>(i));
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::set_merges(const TokenizerData& data) {
  absl::flat_hash_map<std::string_view, int32_t> ids;
  ids.reserve(data.tokens.size());
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    if (kinds_[i] == TokenKind::kUnused || data.tokens[i].empty()) continue;
    const auto [first, fresh] = ids.emplace(data.tokens[i], static_cast<int32_t>(i));
    if (!fresh)
      return malformed(data, kernels::concat("token ", quoted(data.tokens[i]), " has two ids, ",
                                             first->second, " and ", i));
  }
  if (data.merges.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    return malformed(data, kernels::concat(data.merges.size(), " merges"));
  std::string joined;
  for (size_t rank = 0; rank < data.merges.size(); ++rank) {
    const auto& [left, right] = data.merges[rank];
    joined.assign(left).append(right);
    const auto a = ids.find(left);
    const auto b = ids.find(right);
    const auto result = ids.find(joined);
    if (a == ids.end() || b == ids.end() || result == ids.end()) {
      const std::string& missing = a == ids.end() ? left : b == ids.end() ? right : joined;
      return malformed(data, kernels::concat("merges[", rank, "] names ", quoted(missing),
                                             ", which is not a token"));
    }
    bpe_.add_merge(a->second, b->second, {static_cast<int32_t>(rank), result->second});
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::set_special(const TokenizerData& data) {
  std::vector<SpecialTokens::Entry> added, all;
  for (size_t i = 0; i < kinds_.size(); ++i) {
    const SpecialTokens::Entry entry{bytes_[i], static_cast<int32_t>(i)};
    if (kinds_[i] == TokenKind::kAdded) added.push_back(entry);
    if (kinds_[i] == TokenKind::kAdded || kinds_[i] == TokenKind::kControl) all.push_back(entry);
  }
  added_ = SpecialTokens(std::move(added));
  all_special_ = SpecialTokens(std::move(all));

  if (data.bos_id && !in_vocabulary(*data.bos_id)) return outside(data, "BOS id", *data.bos_id);
  if (data.bos_id) bos_id_ = static_cast<int32_t>(*data.bos_id);
  for (const int64_t id : data.eos_ids) {
    if (!in_vocabulary(id)) return outside(data, "EOS id", id);
    eos_ids_.push_back(static_cast<int32_t>(id));
  }
  if (data.add_bos && !bos_id_) return malformed(data, "asks for a BOS token but names none");
  add_bos_ = data.add_bos;
  return absl::OkStatus();
}

void Tokenizer::set_chat(const TokenizerData& data) {
  if (data.chat_template.empty()) {
    chat_ = absl::FailedPreconditionError(
        "this model has no chat template; send the prompt as text or as token ids instead of chat "
        "messages");
  } else {
    chat_ = ChatTemplate::recognise(data.chat_template, bos_id_ ? token_bytes(*bos_id_) : "");
  }
  if (chat_.ok()) {
    for (const std::string& name : chat_->control_tokens()) {
      if (control_id(name)) continue;
      chat_ = absl::FailedPreconditionError(kernels::concat(
          "this model's chat template writes ", name,
          ", which is not one of its control tokens; send the prompt as text or as token ids"));
      break;
    }
  }
  if (chat_.ok()) eos_ids_.push_back(*control_id(chat_->end_of_turn()));
  std::sort(eos_ids_.begin(), eos_ids_.end());
  eos_ids_.erase(std::unique(eos_ids_.begin(), eos_ids_.end()), eos_ids_.end());
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return in_vocabulary(id) ? std::string_view(bytes_[static_cast<size_t>(id)]) : std::string_view();
}

std::optional<int32_t> Tokenizer::control_id(std::string_view name) const {
  const auto found = controls_.find(name);
  return found == controls_.end() ? std::nullopt : std::optional<int32_t>(found->second);
}

absl::Status Tokenizer::append_text(std::string_view text, Cache& cache,
                                    std::vector<int32_t>& ids) const {
  if (absl::Status s = pretokenizer_->split(text, cache.pieces); !s.ok()) return s;
  for (const std::string_view piece : cache.pieces) {
    if (const auto whole = whole_.find(piece); whole != whole_.end()) {
      ids.push_back(whole->second);
      continue;
    }
    const size_t begin = ids.size();
    if (piece.size() > kCachedPieceBytes) {
      bpe_.encode(piece, cache.scratch, ids);
      continue;
    }
    const auto [known, fresh] = cache.known.try_emplace(piece, Cache::Stretch{begin, 0});
    if (fresh) {
      bpe_.encode(piece, cache.scratch, ids);
      known->second.count = ids.size() - begin;
    } else {
      const Cache::Stretch stretch = known->second;
      for (size_t i = 0; i < stretch.count; ++i) ids.push_back(ids[stretch.begin + i]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::encode(std::string_view text,
                                                       bool parse_special) const {
  if (text.size() > kMaxTextBytes)
    return absl::InvalidArgumentError(kernels::concat("text of ", text.size(), " bytes; at most ",
                                                      kMaxTextBytes, " can be encoded at once"));
  if (const std::optional<size_t> bad = first_invalid_utf8(text))
    return absl::InvalidArgumentError(kernels::concat("text is not valid UTF-8 at byte ", *bad));
  const SpecialTokens& special = parse_special ? all_special_ : added_;
  std::vector<int32_t> ids;
  Cache cache;
  size_t at = 0;
  while (at < text.size()) {
    const std::optional<SpecialTokens::Match> match = special.find(text, at);
    const size_t end = match ? match->at : text.size();
    if (absl::Status s = append_text(text.substr(at, end - at), cache, ids); !s.ok()) return s;
    if (!match) break;
    ids.push_back(match->id);
    at = match->at + match->length;
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::encode_prompt(std::string_view text,
                                                              bool parse_special) const {
  absl::StatusOr<std::vector<int32_t>> ids = encode(text, parse_special);
  if (ids.ok() && add_bos_) ids->insert(ids->begin(), *bos_id_);
  return ids;
}

absl::StatusOr<std::vector<ChatSegment>> Tokenizer::chat_segments(
    std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  if (!chat_.ok()) return chat_.status();
  for (size_t i = 0; i < messages.size(); ++i)
    if (const std::optional<size_t> bad = first_invalid_utf8(messages[i].content))
      return absl::InvalidArgumentError(
          kernels::concat("messages[", i, "].content is not valid UTF-8 at byte ", *bad));
  return chat_->render(messages, add_generation_prompt);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::encode_chat(std::span<const ChatMessage> messages,
                                                            bool add_generation_prompt) const {
  const auto segments = chat_segments(messages, add_generation_prompt);
  if (!segments.ok()) return segments.status();
  std::vector<int32_t> ids;
  for (const ChatSegment& segment : *segments) {
    if (segment.control) {
      ids.push_back(*control_id(segment.text));
      continue;
    }
    const auto part = encode(segment.text, /*parse_special=*/false);
    if (!part.ok()) return part.status();
    ids.insert(ids.end(), part->begin(), part->end());
  }
  return ids;
}

absl::StatusOr<std::string> Tokenizer::render_chat(std::span<const ChatMessage> messages,
                                                   bool add_generation_prompt) const {
  const auto segments = chat_segments(messages, add_generation_prompt);
  if (!segments.ok()) return segments.status();
  std::string text;
  for (const ChatSegment& segment : *segments) text += segment.text;
  return text;
}

absl::StatusOr<std::string> Tokenizer::decode(std::span<const int32_t> ids,
                                              bool show_special) const {
  std::string text;
  IncrementalDecoder decoder(*this, show_special);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!in_vocabulary(ids[i]))
      return absl::InvalidArgumentError(kernels::concat(
          "ids[", i, "] = ", ids[i], " is not in the vocabulary of ", vocab_size(), " tokens"));
    text += decoder.push(ids[i]);
  }
  return text + decoder.flush();
}

}  // namespace annulus::server
