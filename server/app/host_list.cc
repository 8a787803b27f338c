// SPDX-License-Identifier: Apache-2.0
#include "server/app/host_list.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace annulus::server {
namespace {

using Names = std::vector<std::string>;

constexpr size_t kLongestName = 255;
constexpr size_t kMostDigits = 18;

bool name_character(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
}

// Where in the list, for people: characters are counted from 1.
absl::Status wrong(size_t at, const std::string& how) {
  return absl::InvalidArgumentError(absl::StrCat("at character ", at + 1, ": ", how));
}

absl::Status too_many(size_t at) {
  return wrong(at, absl::StrCat("more than ", kMostHosts, " hosts"));
}

bool parse_number(absl::string_view digits, int64_t& value) {
  const bool plain = !digits.empty() && digits.size() <= kMostDigits &&
                     std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit);
  return plain && absl::SimpleAtoi(digits, &value);
}

// Appends "7" or "07-10" as numbers with leading zeros.
absl::Status expand_range(absl::string_view range, size_t at, Names& numbers) {
  const size_t dash = range.find('-');
  const absl::string_view from = range.substr(0, dash);
  const absl::string_view to = dash == absl::string_view::npos ? from : range.substr(dash + 1);
  int64_t first = 0, last = 0;
  if (!parse_number(from, first) || !parse_number(to, last)) {
    return wrong(at, absl::StrCat("\"", range, "\" is neither a number nor a range like 07-10"));
  }
  if (last < first) return wrong(at, absl::StrCat("the range ", range, " runs backwards"));
  if (static_cast<uint64_t>(last - first) >= kMostHosts - numbers.size()) return too_many(at);
  for (int64_t number = first; number <= last; ++number) {
    std::string text = absl::StrCat(number);
    if (text.size() < from.size()) text.insert(0, from.size() - text.size(), '0');
    numbers.push_back(std::move(text));
  }
  return absl::OkStatus();
}

// The inside of a bracket, `at` is where it begins in the list.
absl::StatusOr<Names> expand_bracket(absl::string_view ranges, size_t at) {
  Names numbers;
  for (const absl::string_view range : absl::StrSplit(ranges, ',')) {
    if (absl::Status status = expand_range(range, at, numbers); !status.ok()) return status;
    at += range.size() + 1;
  }
  return numbers;
}

// Every name so far with every ending.
absl::StatusOr<Names> product(const Names& names, const Names& endings, size_t at) {
  if (names.size() * endings.size() > kMostHosts) return too_many(at);
  Names out;
  out.reserve(names.size() * endings.size());
  for (const std::string& name : names) {
    for (const std::string& ending : endings) {
      if (name.size() + ending.size() > kLongestName) {
        return wrong(at, absl::StrCat("a name of more than ", kLongestName, " characters"));
      }
      out.push_back(name + ending);
    }
  }
  return out;
}

// One entry, up to a comma outside brackets or the end; `at` moves behind it.
absl::StatusOr<Names> expand_entry(absl::string_view list, size_t& at) {
  Names names = {""};
  while (at < list.size() && list[at] != ',') {
    const size_t began = at;
    absl::StatusOr<Names> endings = Names{};
    if (list[at] == '[') {
      const size_t stop = list.find_first_of("[]", at + 1);
      if (stop == absl::string_view::npos) return wrong(at, "this [ has no ]");
      if (list[stop] == '[') return wrong(stop, "a bracket inside a bracket");
      endings = expand_bracket(list.substr(at + 1, stop - at - 1), at + 1);
      at = stop + 1;
    } else {
      while (at < list.size() && name_character(list[at])) ++at;
      if (at == began) {
        return wrong(at, list[at] == ']' ? std::string("this ] has no [")
                                         : absl::StrCat("'", list.substr(at, 1),
                                                        "' does not belong into a host's name"));
      }
      endings->emplace_back(list.substr(began, at - began));
    }
    if (!endings.ok()) return endings.status();
    auto longer = product(names, *endings, began);
    if (!longer.ok()) return longer;
    names = *std::move(longer);
  }
  return names;
}

absl::StatusOr<Names> expand(absl::string_view list) {
  Names hosts;
  for (size_t at = 0; at < list.size(); ++at) {
    const size_t began = at;
    auto names = expand_entry(list, at);
    if (!names.ok()) return names;
    if (at == began) continue;  // nothing between two commas, as Slurm takes it
    if (hosts.size() + names->size() > kMostHosts) return too_many(began);
    hosts.insert(hosts.end(), names->begin(), names->end());
  }
  if (hosts.empty()) return absl::InvalidArgumentError("there is no name in it");
  return hosts;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> expand_hosts(absl::string_view list) {
  auto hosts = expand(list);
  if (hosts.ok()) return hosts;
  constexpr size_t kShown = 200;
  return absl::InvalidArgumentError(absl::StrCat("host list \"", list.substr(0, kShown),
                                                 list.size() > kShown ? "..." : "", "\", ",
                                                 hosts.status().message()));
}

}  // namespace annulus::server
