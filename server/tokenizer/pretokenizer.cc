// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "kernels/core/check.h"
#include "server/tokenizer/utf8.h"

namespace annulus::server {
namespace {

// Steps of one match. The patterns in use take a few per character and PCRE2's default of ten
// million would refuse a piece of 5 MB; this one still ends a runaway pattern within seconds.
constexpr uint32_t kMatchLimit = 400'000'000;
constexpr size_t kJitStackBytes = 8u << 20;
constexpr size_t kPatternBytes = 64u << 10;

template <auto kFree>
struct Free {
  template <class T>
  void operator()(T* p) const {
    kFree(p);
  }
};
using Code = std::unique_ptr<pcre2_code, Free<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>>;

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  const int size = pcre2_get_error_message(code, text, sizeof(text));
  return size < 0 ? kernels::concat("PCRE2 error ", code)
                  : std::string(reinterpret_cast<char*>(text));
}

// Spells \s and \S out as Unicode White_Space.
std::string with_unicode_spaces(std::string_view pattern) {
  constexpr std::string_view kSpaces =
      R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's' && in_class) {
        out += kSpaces;
      } else if (!in_class && (next == 's' || next == 'S')) {
        out += kernels::concat(next == 's' ? "[" : "[^", kSpaces, "]");
      } else {
        out += {c, next};
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];  // a literal here
      continue;
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

}  // namespace

std::string literal_pattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const bool punctuation = static_cast<uint8_t>(c) < 0x80 &&
                             !absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '\0';
    if (c == '\0') {
      pattern += "\\x{0}";
      continue;
    }
    if (punctuation)
      pattern += '\\';  // PCRE2 takes any escaped ASCII punctuation or space as itself
    pattern += c;
  }
  return pattern;
}

class PreTokenizer::Regex {
 public:
  static absl::StatusOr<std::unique_ptr<Regex>> compile(const SplitRule& rule) {
    if (rule.pattern.size() > kPatternBytes)
      return absl::InvalidArgumentError(kernels::concat("pre-tokenizer pattern of ",
                                                        rule.pattern.size(),
                                                        " bytes; the limit is ", kPatternBytes));
    const std::string pattern = with_unicode_spaces(rule.pattern);
    int error = 0;
    PCRE2_SIZE offset = 0;
    auto regex = std::make_unique<Regex>();
    regex->rule_ = rule;
    regex->code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error,
                                     &offset, nullptr));
    if (!regex->code_)
      return absl::InvalidArgumentError(kernels::concat(
          "pre-tokenizer pattern \"", rule.pattern, "\" does not compile: ", pcre2_message(error)));
    // Where executable pages are forbidden this fails, and pcre2_match interprets the pattern
    // instead.
    (void)pcre2_jit_compile(regex->code_.get(), PCRE2_JIT_COMPLETE);
    return regex;
  }

  // Appends the pieces of every subject to `out`.
  absl::Status split(const std::vector<std::string_view>& subjects,
                     std::vector<std::string_view>& out) const {
    const MatchData data(pcre2_match_data_create(1, nullptr));
    const MatchContext context(pcre2_match_context_create(nullptr));
    const JitStack stack(pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr));
    if (!data || !context) return absl::ResourceExhaustedError("no memory for the pre-tokenizer");
    pcre2_set_match_limit(context.get(), kMatchLimit);
    if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    for (const std::string_view subject : subjects) {
      Cutter cutter{rule_.behavior, out};
      size_t done = 0;
      size_t search = 0;
      while (search < subject.size()) {
        const int found =
            pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(),
                        search, PCRE2_NO_UTF_CHECK, data.get(), context.get());
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0)
          return absl::InvalidArgumentError(kernels::concat(
              "pre-tokenizer pattern \"", rule_.pattern, "\" failed: ", pcre2_message(found)));
        const PCRE2_SIZE* span = pcre2_get_ovector_pointer(data.get());
        if (span[1] <= span[0] ||
            span[0] < done) {  // an empty match, or one moved by \K, cuts nothing
          search += utf8_step(subject.substr(search)).length;
          continue;
        }
        cutter.add(subject.substr(done, span[0] - done), rule_.invert);
        cutter.add(subject.substr(span[0], span[1] - span[0]), !rule_.invert);
        done = search = span[1];
      }
      cutter.add(subject.substr(done), rule_.invert);
      cutter.finish();
    }
    return absl::OkStatus();
  }

 private:
  // Turns the alternation of unmatched and matched stretches of one subject into pieces.
  struct Cutter {
    SplitBehavior behavior;
    std::vector<std::string_view>& out;
    std::string_view held = {};  // last stretch, not yet written
    bool held_matched = false;

    void add(std::string_view stretch, bool matched) {
      if (stretch.empty()) return;
      const bool join =
          !held.empty() &&
          ((behavior == SplitBehavior::kContiguous && matched == held_matched) ||
           (behavior == SplitBehavior::kMergedWithPrevious && matched && !held_matched) ||
           (behavior == SplitBehavior::kMergedWithNext && !matched && held_matched));
      if (join) {
        held = std::string_view(held.data(), held.size() + stretch.size());  // they are adjacent
      } else {
        finish();
        held = stretch;
      }
      held_matched = matched;
    }

    void finish() {
      const bool drop = behavior == SplitBehavior::kRemoved && held_matched;
      if (!held.empty() && !drop) out.push_back(held);
      held = {};
    }
  };

  SplitRule rule_;
  Code code_;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<PreTokenizer> PreTokenizer::create(const std::vector<SplitRule>& rules) {
  PreTokenizer made;
  for (const SplitRule& rule : rules) {
    absl::StatusOr<std::unique_ptr<Regex>> regex = Regex::compile(rule);
    if (!regex.ok()) return regex.status();
    made.rules_.push_back(*std::move(regex));
  }
  return made;
}

absl::Status PreTokenizer::split(std::string_view text,
                                 std::vector<std::string_view>& pieces) const {
  pieces.clear();
  if (text.empty()) return absl::OkStatus();
  pieces.push_back(text);
  std::vector<std::string_view> finer;
  for (const std::unique_ptr<Regex>& rule : rules_) {
    finer.clear();
    if (absl::Status status = rule->split(pieces, finer); !status.ok()) return status;
    pieces.swap(finer);
  }
  return absl::OkStatus();
}

}  // namespace annulus::server
