// SPDX-License-Identifier: Apache-2.0
// UTF-8 as the Unicode standard defines it (table 3-7): no overlong forms, no surrogates, nothing
// above U+10FFFF. Callers: tokenizer (refuses text that is not UTF-8), incremental decoder
// (replaces what is not). Pure; any thread. Invalid bytes are measured in maximal subparts (Unicode
// 3.9, WHATWG): the longest prefix of a valid character, or one byte. Each subpart stands for one
// U+FFFD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace annulus::server {

enum class Utf8Kind : uint8_t { kComplete, kIncomplete, kInvalid };

struct Utf8Step {
  Utf8Kind kind;
  size_t length;  // bytes of the character, of its beginning (incomplete: all bytes left), or of
                  // the subpart
  uint32_t code_point;  // of a complete character, else 0
};

// Reads the character at the start of `bytes`, which must not be empty.
Utf8Step utf8_step(std::string_view bytes);

// Offset of the first byte that does not belong to a complete character; nullopt when all is valid.
std::optional<size_t> first_invalid_utf8(std::string_view text);

// Appends a code point up to U+10FFFF.
void append_utf8(uint32_t code_point, std::string& out);

// White space of Python's str.strip(), hence of Jinja's trim filter.
std::string_view trim_unicode_space(std::string_view text);

}  // namespace annulus::server
