// SPDX-License-Identifier: Apache-2.0
// The alphabet of byte-level BPE files: each byte is spelled as one printable character, so that a
// vocabulary is text. Printable ASCII and Latin-1 stand for themselves; the 68 other bytes are
// U+0100, U+0101, ... in order (a space is U+0120, a newline U+010A). Source: GPT-2's released
// vocabulary. Pure; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace annulus::server {

// The bytes that a token's spelling stands for; nullopt when a character is not of the alphabet.
std::optional<std::string> bytes_of_spelling(std::string_view spelling);

std::string spelling_of_bytes(std::string_view bytes);

}  // namespace annulus::server
