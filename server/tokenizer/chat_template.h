// SPDX-License-Identifier: Apache-2.0
// Chat templates of the two families that Llama-architecture models use. The Jinja text of a model
// file is not run: it is read for its string literals, and accepted only when they are those of
//   ChatML   [bos] {<|im_start|>ROLE\nCONTENT<|im_end|>\n} [<|im_start|>assistant\n]
//   Llama 3  [bos] {<|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>} [header]
// ChatML may write a system message of its own when the first message is not one (SmolLM2). Llama 3
// may trim contents (3.0), and open the system message with "Cutting Knowledge Date" and a date
// (3.1 on): the date is the template's own fallback, never today's, so that a chat keeps its ids.
// render() returns segments: only what the template itself writes can become a control token, a
// content that spells "<|im_end|>" stays text. Pure; any thread. Errors: an unknown template is
// FailedPrecondition; a role outside the whitelist, or no messages, InvalidArgument.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace annulus::server {

struct ChatMessage {
  std::string role;  // system, user or assistant
  std::string content;
};

struct ChatSegment {
  bool control;      // text is the name of one control token
  std::string text;  // never empty; two neighbours are never both text
};

class ChatTemplate {
 public:
  // bos_token: name of the model's BOS token, "" when it has none; a template may write it.
  static absl::StatusOr<ChatTemplate> recognise(std::string_view jinja, std::string_view bos_token);

  absl::StatusOr<std::vector<ChatSegment>> render(std::span<const ChatMessage> messages,
                                                  bool add_generation_prompt) const;

  // Every control token that render() may write.
  const std::vector<std::string>& control_tokens() const { return control_tokens_; }
  const std::string& end_of_turn() const { return end_of_turn_; }

 private:
  // What a message looks like: open ROLE middle CONTENT close, with the control tokens among them.
  std::string bos_;            // "": none
  std::string open_;           // control
  std::string header_end_;     // control, "" in ChatML
  std::string after_role_;     // text
  std::string end_of_turn_;    // control
  std::string after_content_;  // text
  bool trim_ = false;
  bool always_prompt_ = false;
  bool own_system_ =
      false;  // writes default_system_ when the first message is not a system message
  std::string default_system_;
  std::string system_prefix_;  // Llama 3.1: opens the system message, which is then always written
  std::vector<std::string> control_tokens_;
};

}  // namespace annulus::server
