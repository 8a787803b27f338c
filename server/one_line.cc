// SPDX-License-Identifier: Apache-2.0
#include "server/one_line.h"

#include "absl/strings/str_format.h"
#include "server/tokenizer/utf8.h"

namespace annulus::server {

std::string one_line(std::string_view text) {
  std::string out;
  while (!text.empty() && out.size() < kLongestLine) {
    const Utf8Step step = utf8_step(text);
    const auto byte = static_cast<unsigned char>(text[0]);
    const bool control =
        step.code_point < 0x20 || (step.code_point >= 0x7f && step.code_point < 0xa0);
    if (step.kind == Utf8Kind::kComplete && !control) {
      out += text.substr(0, step.length);
      text.remove_prefix(step.length);
      continue;
    }
    if (byte == '\n') {
      out += "\\n";
    } else if (byte == '\t') {
      out += "\\t";
    } else {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
    }
    text.remove_prefix(1);
  }
  if (!text.empty()) out += "...";
  return out;
}

}  // namespace annulus::server
