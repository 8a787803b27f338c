// SPDX-License-Identifier: Apache-2.0
// What the commands that measure a server share on their command line: parsing with one clear line
// for a wrong flag, flags of `annulus serve` behind `--`, numbers that may not be NaN, and exit
// codes (0; 1: failed; 2: whoever called can mend it).
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace annulus::bench {

// Takes what follows "--" off the arguments.
std::vector<std::string> after_dashes(int& argc, char** argv);

// Parses; an exit code where that ends the command (--help: 0, a wrong flag: 2, after its line).
std::optional<int> parse_or_exit(CLI::App& app, int argc, char** argv);

// A number in [low, high], or in (0, high] where low is 0.
CLI::Validator number_up_to(double low, double high);

// Prints the error as one line, "annulus-bench COMMAND: ..."; its exit code.
int report(const char* command, const absl::Status& status);

}  // namespace annulus::bench
