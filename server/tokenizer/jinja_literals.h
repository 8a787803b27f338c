// SPDX-License-Identifier: Apache-2.0
// Reads a Jinja template without running it: what text it can write, and which names its code uses.
// Caller: ChatTemplate::recognise. Pure; any thread. Bounds-checked: any bytes are accepted.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace annulus::server {

struct JinjaParts {
  // String literals inside tags, unescaped, and text outside tags, in order and without empty ones.
  // Newlines after block tags and blanks before them are dropped, as with trim_blocks and
  // lstrip_blocks.
  std::vector<std::string> literals;
  std::string code;  // the tags, with every literal replaced by ''
};

JinjaParts read_jinja(std::string_view text);

}  // namespace annulus::server
