// SPDX-License-Identifier: Apache-2.0
// What every subcommand of simulate shares: machine and model by name, and the tables' helpers.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/status.h"
#include "bench/simulate_engine.h"

namespace annulus::bench {

struct SimFlags {
  std::string machine_name = "h100-ndr", model_name = "llama-405b";
  Machine machine;
  SimModel model;

  void add_to(CLI::App& app);
  absl::Status load();  // after parsing
};

}  // namespace annulus::bench
