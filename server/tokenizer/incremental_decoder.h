// SPDX-License-Identifier: Apache-2.0
// Token ids to text as they arrive. A piece is always valid UTF-8 and no character is ever split
// between pieces: bytes wait until their character is complete; invalid ones become U+FFFD as soon
// as they are known to be invalid (maximal subparts, utf8.h). The pieces and flush() joined are the
// text of all ids. One a stream, one thread at a time. Borrows the tokenizer, which must outlive
// it. Never fails.
#pragma once

#include <cstdint>
#include <string>

#include "server/tokenizer/tokenizer.h"

namespace annulus::server {

class IncrementalDecoder {
 public:
  // show_special: whether a control token is shown by its name or hidden.
  IncrementalDecoder(const Tokenizer& tokenizer, bool show_special)
      : tokenizer_(tokenizer), show_special_(show_special) {}

  // The text that this token completes, "" when none. An id outside the vocabulary adds nothing.
  std::string push(int32_t id);
  // What is left when the stream ends.
  std::string flush();

 private:
  std::string drain(bool end);

  const Tokenizer& tokenizer_;
  bool show_special_;
  std::string pending_;  // the beginning of a character, at most 3 bytes between calls
};

}  // namespace annulus::server
