// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/incremental_decoder.h"

#include <string_view>

#include "server/tokenizer/utf8.h"

namespace annulus::server {
namespace {

// The first two bytes of a surrogate are invalid already. They are still held until a third byte
// could have come, as Python's incremental decoder does and the goldens therefore expect.
bool begins_surrogate(std::string_view rest) {
  return rest.size() == 2 && rest[0] == '\xED' && static_cast<uint8_t>(rest[1]) >= 0xA0 &&
         static_cast<uint8_t>(rest[1]) <= 0xBF;
}

}  // namespace

std::string IncrementalDecoder::push(int32_t id) {
  if (!show_special_ && tokenizer_.is_control(id)) return "";
  pending_ += tokenizer_.token_bytes(id);
  return drain(/*end=*/false);
}

std::string IncrementalDecoder::flush() {
  return drain(/*end=*/true);
}

std::string IncrementalDecoder::drain(bool end) {
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (!end && (step.kind == Utf8Kind::kIncomplete || begins_surrogate(rest))) break;
    if (step.kind == Utf8Kind::kComplete)
      out += rest.substr(0, step.length);
    else
      append_utf8(0xFFFD, out);
    rest.remove_prefix(step.length);
  }
  pending_ = std::string(rest);
  return out;
}

}  // namespace annulus::server
