// SPDX-License-Identifier: Apache-2.0
// tokenizer.json; what loads is used: text, control tokens, chat, and back.
#include "server/tokenizer/load.h"
#include "tests/fuzz/target.h"

ANNULUS_FUZZ_TARGET(tokenizer_json) {
  const MemoryFile file(data, size);
  const auto loaded = server::tokenizer_from_json(file.path());
  if (!loaded.ok()) return check_error(loaded.status());
  const server::Tokenizer& tokenizer = **loaded;
  for (const char* text : {"Hello, world's 123\n\n  end", "<|im_end|> \xc3\xa9\xe2\x82\xac", ""}) {
    for (const bool special : {false, true}) {
      const auto ids = tokenizer.encode_prompt(text, special);
      if (!ids.ok()) {
        check_error(ids.status());
        continue;
      }
      ANNULUS_CHECK(tokenizer.decode(*ids, true).ok(), text);
    }
  }
  const std::vector<server::ChatMessage> chat = {{"user", "hi"}, {"assistant", "<|im_start|>"}};
  if (const auto ids = tokenizer.encode_chat(chat, true); !ids.ok()) check_error(ids.status());
}
