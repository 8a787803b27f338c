// SPDX-License-Identifier: Apache-2.0
#include "bench/command_line.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace annulus::bench {
namespace {

std::string flat(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"\n", " "}, {"\r", " "}});
}

}  // namespace

std::vector<std::string> after_dashes(int& argc, char** argv) {
  char** const end = argv + argc;
  char** const dashes = std::find_if(argv, end, [](char* a) { return std::strcmp(a, "--") == 0; });
  argc = static_cast<int>(dashes - argv);
  return dashes == end ? std::vector<std::string>{} : std::vector<std::string>(dashes + 1, end);
}

std::optional<int> parse_or_exit(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {
    return app.exit(wanted);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: %s (%s --help shows how)\n", app.get_name().c_str(),
                 flat(error.what()).c_str(), app.get_name().c_str());
    return 2;
  }
  return std::nullopt;
}

CLI::Validator number_up_to(double low, double high) {
  const std::string range =
      low > 0 ? absl::StrCat("from ", low, " to ", high) : absl::StrCat("above 0, at most ", high);
  const auto check = [=](const std::string& text) -> std::string {
    double value = 0;
    if (absl::SimpleAtod(text, &value) && value > 0 && value >= low && value <= high) return "";
    return absl::StrCat("\"", text, "\" is not a number ", range);
  };
  return {check, ""};
}

int report(const char* command, const absl::Status& status) {
  std::fprintf(stderr, "annulus-bench %s: %s\n", command, flat(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnavailable: return 2;
    default: return 1;
  }
}

}  // namespace annulus::bench
