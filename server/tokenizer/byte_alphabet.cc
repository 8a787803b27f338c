// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "server/tokenizer/utf8.h"

namespace annulus::server {
namespace {

constexpr uint32_t kLetters = 256 + 68;

struct Alphabet {
  std::array<uint32_t, 256> letter;       // of each byte
  std::array<int16_t, kLetters> byte_of;  // of each code point; -1: not a letter
};

bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

const Alphabet& alphabet() {
  static const Alphabet made = [] {
    Alphabet a;
    a.byte_of.fill(-1);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      a.letter[byte] = stands_for_itself(byte) ? byte : next++;
      a.byte_of[a.letter[byte]] = static_cast<int16_t>(byte);
    }
    return a;
  }();
  return made;
}

}  // namespace

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
  std::string bytes;
  while (!spelling.empty()) {
    const Utf8Step step = utf8_step(spelling);
    if (step.kind != Utf8Kind::kComplete || step.code_point >= kLetters) return std::nullopt;
    const int16_t byte = alphabet().byte_of[step.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    spelling.remove_prefix(step.length);
  }
  return bytes;
}

std::string spelling_of_bytes(std::string_view bytes) {
  std::string spelling;
  for (const char byte : bytes)
    append_utf8(alphabet().letter[static_cast<uint8_t>(byte)], spelling);
  return spelling;
}

}  // namespace annulus::server
