// SPDX-License-Identifier: Apache-2.0
// A chat template and a chat, separated by zero bytes: TEMPLATE \0 ROLE \0 CONTENT \0 ROLE ...
// Whatever a content spells, it becomes no control token.
#include "server/tokenizer/chat_template.h"

#include <algorithm>

#include "tests/fuzz/target.h"

namespace annulus::fuzz {
namespace {

using server::ChatMessage;
using server::ChatTemplate;

std::string_view next_field(std::string_view& rest) {
  const std::string_view field = rest.substr(0, rest.find('\0'));
  rest.remove_prefix(std::min(rest.size(), field.size() + 1));
  return field;
}

std::vector<std::string> controls_of(const ChatTemplate& chat,
                                     const std::vector<ChatMessage>& messages) {
  std::vector<std::string> names;
  const auto segments = chat.render(messages, true);
  ANNULUS_CHECK(segments.ok(), std::string(segments.status().message()));
  for (size_t i = 0; i < segments->size(); ++i) {
    const server::ChatSegment& segment = (*segments)[i];
    ANNULUS_CHECK(!segment.text.empty());
    if (segment.control) {
      names.push_back(segment.text);
    } else {
      ANNULUS_CHECK(i == 0 || (*segments)[i - 1].control, "neighbouring texts");
    }
  }
  return names;
}

}  // namespace
}  // namespace annulus::fuzz

ANNULUS_FUZZ_TARGET(chat_template) {
  std::string_view rest = text_of(data, size);
  const auto chat = server::ChatTemplate::recognise(next_field(rest), "<|bos|>");
  if (!chat.ok()) return check_error(chat.status());
  std::vector<server::ChatMessage> messages;
  while (!rest.empty() && messages.size() < 32) {
    const std::string role(next_field(rest));
    messages.push_back({role, std::string(next_field(rest))});
  }
  if (const auto segments = chat->render(messages, false); !segments.ok())
    return check_error(segments.status());
  const std::vector<std::string> names = controls_of(*chat, messages);
  for (const std::string& name : names) {
    const auto& known = chat->control_tokens();
    ANNULUS_CHECK(std::find(known.begin(), known.end(), name) != known.end(), name);
  }
  for (server::ChatMessage& message : messages) message.content.clear();
  ANNULUS_CHECK(controls_of(*chat, messages) == names, "a content wrote a control token");
}
