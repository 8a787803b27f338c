// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/jinja_literals.h"

#include <utility>

namespace annulus::server {
namespace {

constexpr std::string_view kBlank = " \t\r\n";

std::string_view rstrip(std::string_view text, std::string_view blank) {
  const size_t last = text.find_last_not_of(blank);
  return last == std::string_view::npos ? std::string_view() : text.substr(0, last + 1);
}

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  JinjaParts read() {
    while (at_ < text_.size()) {
      const size_t tag = next_tag();
      std::string_view outside = text_.substr(at_, tag - at_);
      at_ = tag;
      const bool more = tag < text_.size();
      const char kind = more ? text_[tag + 1] : '\0';
      if (more && tag + 2 < text_.size() && text_[tag + 2] == '-') {
        outside = rstrip(outside, kBlank);
      } else if (more &&
                 kind != '{') {  // lstrip_blocks: only when nothing else is before it in its line
        const std::string_view stripped = rstrip(outside, " \t");
        if (stripped.empty() || stripped.back() == '\n') outside = stripped;
      }
      add(std::string(outside));
      if (!more) break;
      if (kind == '#') {
        const size_t end = text_.find("#}", at_ + 2);
        at_ = end == std::string_view::npos ? text_.size() : end + 2;
      } else {
        read_tag(kind == '{' ? "}}" : "%}");
      }
      skip_blanks_after(kind);
    }
    return std::move(parts_);
  }

 private:
  size_t next_tag() const {
    for (size_t at = at_; at + 1 < text_.size(); ++at) {
      const char next = text_[at + 1];
      if (text_[at] == '{' && (next == '{' || next == '%' || next == '#')) return at;
    }
    return text_.size();
  }

  void read_tag(std::string_view end) {
    while (at_ < text_.size() && text_.substr(at_, 2) != end) {
      const char c = text_[at_];
      if (c == '\'' || c == '"') {
        add(read_string());
        parts_.code += "''";
      } else {
        parts_.code += c;
        ++at_;
      }
    }
    at_ = at_ + 2 < text_.size() ? at_ + 2 : text_.size();
    parts_.code += '\n';
  }

  std::string read_string() {
    const char quote = text_[at_++];
    std::string out;
    while (at_ < text_.size() && text_[at_] != quote) {
      char c = text_[at_++];
      if (c == '\\' && at_ < text_.size()) {
        c = text_[at_++];
        if (c == 'n') c = '\n';
        if (c == 't') c = '\t';
        if (c == 'r') c = '\r';
      }
      out += c;
    }
    if (at_ < text_.size()) ++at_;
    return out;
  }

  void skip_blanks_after(char kind) {
    const bool dash = at_ >= 3 && text_[at_ - 3] == '-';
    if (dash) {
      at_ = text_.find_first_not_of(kBlank, at_);
      if (at_ == std::string_view::npos) at_ = text_.size();
    } else if (kind != '{' && at_ < text_.size() && text_[at_] == '\n') {
      ++at_;
    }
  }

  void add(std::string literal) {
    if (!literal.empty()) parts_.literals.push_back(std::move(literal));
  }

  std::string_view text_;
  size_t at_ = 0;
  JinjaParts parts_;
};

}  // namespace

JinjaParts read_jinja(std::string_view text) {
  return Reader(text).read();
}

}  // namespace annulus::server
