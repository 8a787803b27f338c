// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/chat_template.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "kernels/core/check.h"
#include "server/tokenizer/jinja_literals.h"
#include "server/tokenizer/utf8.h"

namespace annulus::server {
namespace {

using kernels::concat;

constexpr std::string_view kImStart = "<|im_start|>";
constexpr std::string_view kImEnd = "<|im_end|>";
constexpr std::string_view kBegin = "<|begin_of_text|>";
constexpr std::string_view kHeaderStart = "<|start_header_id|>";
constexpr std::string_view kHeaderEnd = "<|end_header_id|>";
constexpr std::string_view kTurnEnd = "<|eot_id|>";
constexpr std::string_view kMessageEnd = "<|eom_id|>";
constexpr std::string_view kPythonTag = "<|python_tag|>";
constexpr std::array<std::string_view, 3> kRoles = {"system", "user", "assistant"};

constexpr std::string_view kKnowledge = "Cutting Knowledge Date: ";
constexpr std::string_view kToday = "Today Date: ";

// Names in a template's code that change what is written in ways that render() does not model.
constexpr std::array<std::string_view, 7> kForeignCode = {
    "eos_token", "enable_thinking", "reasoning_content", "replace", "split", "upper", "capitalize"};

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

absl::Status unknown(std::string_view why) {
  return absl::FailedPreconditionError(
      concat("this model's chat template is neither ChatML nor Llama 3 (", why,
             "); send the prompt as text or as token ids instead of chat messages"));
}

// Names of the form <|...|> in a literal.
void collect_controls(std::string_view literal, std::vector<std::string_view>& out) {
  for (size_t at = literal.find("<|"); at != std::string_view::npos;
       at = literal.find("<|", at + 2)) {
    const size_t end = literal.find("|>", at + 2);
    if (end == std::string_view::npos) return;
    out.push_back(literal.substr(at, end + 2 - at));
  }
}

bool is_date(std::string_view s) {  // "26 Jul 2024"
  if (s.size() != 11) return false;
  for (size_t i = 0; i < s.size(); ++i) {
    const auto c = static_cast<unsigned char>(s[i]);
    const bool fits = i == 2 || i == 6 ? c == ' '
                      : i > 2 && i < 6 ? absl::ascii_isalpha(c)
                                       : absl::ascii_isdigit(c);
    if (!fits) return false;
  }
  return true;
}

struct Facts {
  JinjaParts parts;
  std::vector<std::string_view> controls;

  explicit Facts(std::string_view jinja) : parts(read_jinja(jinja)) {
    for (const std::string& literal : parts.literals) collect_controls(literal, controls);
  }
  bool writes(std::string_view literal) const {
    return std::find(parts.literals.begin(), parts.literals.end(), literal) != parts.literals.end();
  }
  bool names(std::string_view word) const { return contains(parts.code, word); }
  bool uses_control(std::string_view name) const {
    return std::find(controls.begin(), controls.end(), name) != controls.end();
  }
  // The first control token that is not among `known`, "" when there is none.
  std::string_view foreign_control(std::initializer_list<std::string_view> known) const {
    for (const std::string_view c : controls)
      if (std::find(known.begin(), known.end(), c) == known.end()) return c;
    return "";
  }
};

// The body of "<|im_start|>system\nBODY<|im_end|>\n", when a literal is of that form.
std::optional<std::string> own_system_of(std::string_view literal) {
  std::string_view body = literal;
  const std::string begin = concat(kImStart, "system\n");
  const std::string end = concat(kImEnd, "\n");
  if (body.size() < begin.size() + end.size() || !body.starts_with(begin) || !body.ends_with(end))
    return std::nullopt;
  body = body.substr(begin.size(), body.size() - begin.size() - end.size());
  if (contains(body, "<|")) return std::nullopt;
  return std::string(body);
}

// Collects segments; neighbouring texts become one, because they are encoded as one.
class Writer {
 public:
  void control(const std::string& name) {
    if (!name.empty()) segments_.push_back({true, name});
  }
  void text(std::string_view text) {
    if (text.empty()) return;
    if (segments_.empty() || segments_.back().control)
      segments_.push_back({false, std::string(text)});
    else
      segments_.back().text += text;
  }
  std::vector<ChatSegment> take() { return std::move(segments_); }

 private:
  std::vector<ChatSegment> segments_;
};

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::recognise(std::string_view jinja,
                                                     std::string_view bos_token) {
  const Facts facts(jinja);
  if (!facts.names("messages") || !(facts.writes("role") || facts.names(".role")))
    return unknown("it does not loop over messages");
  for (const std::string_view word : kForeignCode)
    if (facts.names(word)) return unknown(concat("it uses ", word));

  ChatTemplate made;
  if (facts.names("bos_token")) made.bos_ = bos_token;
  if (facts.uses_control(kImStart)) {
    if (const auto c = facts.foreign_control({kImStart, kImEnd}); !c.empty())
      return unknown(concat("it writes ", c));
    const std::string prompt = concat(kImStart, "assistant\n");
    const std::string closed = concat(kImEnd, "\n");
    if (!facts.writes(kImStart) || !facts.writes("\n") || !facts.writes(prompt) ||
        !(facts.writes(kImEnd) || facts.writes(closed)) || facts.names("trim"))
      return unknown("its ChatML messages have another form");
    for (const std::string& literal : facts.parts.literals) {
      if (!contains(literal, "<|") || literal == kImStart || literal == kImEnd ||
          literal == closed || literal == prompt || literal == concat(kImStart, "system\n"))
        continue;
      std::optional<std::string> body = own_system_of(literal);
      if (!body) {
        if (facts.names("tool"))
          continue;  // belongs to the branches for tools, which are never taken
        return unknown(concat("it writes \"", literal, "\""));
      }
      if (made.own_system_ && made.default_system_ != *body)
        return unknown("it has two system messages of its own");
      made.own_system_ = true;
      made.default_system_ = *std::move(body);
    }
    made.open_ = kImStart;
    made.after_role_ = "\n";
    made.end_of_turn_ = kImEnd;
    made.after_content_ = "\n";
  } else if (facts.uses_control(kHeaderStart)) {
    if (const auto c = facts.foreign_control(
            {kBegin, kHeaderStart, kHeaderEnd, kTurnEnd, kMessageEnd, kPythonTag});
        !c.empty())
      return unknown(concat("it writes ", c));
    const bool prompts = facts.writes(concat(kHeaderStart, "assistant", kHeaderEnd, "\n\n"));
    if (!prompts || !facts.writes(kHeaderStart) || !facts.writes(concat(kHeaderEnd, "\n\n")) ||
        !facts.writes(kTurnEnd))
      return unknown("its Llama 3 messages have another form");
    if (facts.uses_control(kBegin)) made.bos_ = kBegin;
    made.trim_ = facts.names("trim");
    made.always_prompt_ = !facts.names("add_generation_prompt");
    std::string knowledge, date;
    for (const std::string& literal : facts.parts.literals) {
      if (literal.starts_with(kKnowledge) && literal.back() == '\n') knowledge = literal;
      if (is_date(literal)) date = literal;
      if (contains(literal, kKnowledge) && knowledge.empty())
        return unknown("its system message has another form");
    }
    if (!knowledge.empty()) {
      if (date.empty() || !facts.writes(kToday) || !facts.writes("\n\n"))
        return unknown("its system message has another form");
      made.system_prefix_ = concat(knowledge, kToday, date, "\n\n");
    }
    made.open_ = kHeaderStart;
    made.header_end_ = kHeaderEnd;
    made.after_role_ = "\n\n";
    made.end_of_turn_ = kTurnEnd;
  } else {
    return unknown("it writes neither <|im_start|> nor <|start_header_id|>");
  }
  for (const std::string& name : {made.bos_, made.open_, made.header_end_, made.end_of_turn_})
    if (!name.empty()) made.control_tokens_.push_back(name);
  return made;
}

absl::StatusOr<std::vector<ChatSegment>> ChatTemplate::render(std::span<const ChatMessage> messages,
                                                              bool add_generation_prompt) const {
  if (messages.empty()) return absl::InvalidArgumentError("a chat needs at least one message");
  for (size_t i = 0; i < messages.size(); ++i)
    if (std::find(kRoles.begin(), kRoles.end(), messages[i].role) == kRoles.end())
      return absl::InvalidArgumentError(
          concat("messages[", i, "].role must be system, user or assistant"));

  Writer out;
  const auto header = [&](std::string_view role) {
    out.control(open_);
    out.text(role);
    out.control(header_end_);
    out.text(after_role_);
  };
  const auto message = [&](std::string_view role, std::string_view prefix,
                           std::string_view content) {
    header(role);
    out.text(prefix);
    out.text(trim_ ? trim_unicode_space(content) : content);
    out.control(end_of_turn_);
    out.text(after_content_);
  };
  out.control(bos_);
  const bool given = messages[0].role == "system";
  if (!system_prefix_.empty()) {
    message("system", system_prefix_, given ? messages[0].content : "");
    if (given) messages = messages.subspan(1);
  } else if (own_system_ && !given) {
    message("system", "", default_system_);
  }
  for (const ChatMessage& m : messages) message(m.role, "", m.content);
  if (add_generation_prompt || always_prompt_) header("assistant");
  return out.take();
}

}  // namespace annulus::server
