// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/utf8.h"

#include <cstring>

#include "kernels/core/check.h"

namespace annulus::server {
namespace {

struct Lead {
  size_t length;        // 0: starts no character
  uint8_t second_from;  // the second byte's range is what rules out overlong forms and surrogates
  uint8_t second_through;
};

Lead classify(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

}  // namespace

Utf8Step utf8_step(std::string_view bytes) {
  ANNULUS_CHECK(!bytes.empty());
  const auto first = static_cast<uint8_t>(bytes[0]);
  const Lead lead = classify(first);
  if (lead.length == 1) return {Utf8Kind::kComplete, 1, first};
  if (lead.length == 0) return {Utf8Kind::kInvalid, 1, 0};
  uint32_t code_point = first & (0x7Fu >> lead.length);
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8Kind::kIncomplete, i, 0};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t from = i == 1 ? lead.second_from : uint8_t{0x80};
    const uint8_t through = i == 1 ? lead.second_through : uint8_t{0xBF};
    if (byte < from || byte > through) return {Utf8Kind::kInvalid, i, 0};
    code_point = code_point << 6 | (byte & 0x3Fu);
  }
  return {Utf8Kind::kComplete, lead.length, code_point};
}

std::optional<size_t> first_invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t word;
    if (text.size() - at >= sizeof(word)) {  // eight ASCII bytes at a time
      std::memcpy(&word, text.data() + at, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        at += sizeof(word);
        continue;
      }
    }
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Kind::kComplete) return at;
    at += step.length;
  }
  return std::nullopt;
}

void append_utf8(uint32_t code_point, std::string& out) {
  ANNULUS_CHECK(code_point <= 0x10FFFF, "code point ", code_point);
  const auto tail = [&](int shift) {
    out.push_back(static_cast<char>(0x80u | ((code_point >> shift) & 0x3Fu)));
  };
  if (code_point < 0x80) {
    out.push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out.push_back(static_cast<char>(0xC0u | (code_point >> 6)));
    tail(0);
  } else if (code_point < 0x10000) {
    out.push_back(static_cast<char>(0xE0u | (code_point >> 12)));
    tail(6);
    tail(0);
  } else {
    out.push_back(static_cast<char>(0xF0u | (code_point >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string_view trim_unicode_space(std::string_view text) {
  size_t begin = text.size();
  size_t end = text.size();
  bool seen = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    const bool space = step.kind == Utf8Kind::kComplete && is_space(step.code_point);
    if (!space && !seen) begin = at;
    at += step.length;
    if (!space) {
      seen = true;
      end = at;
    }
  }
  return seen ? text.substr(begin, end - begin) : std::string_view();
}

}  // namespace annulus::server
