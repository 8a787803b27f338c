// SPDX-License-Identifier: Apache-2.0
// The subcommands of `annulus`. Each function adds one to the app; parsing it sets `run`, which
// main() then calls for the exit code: 0, 1 (failed), 2 (the caller can mend it).
#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace annulus::server {

using Command = std::function<int()>;

void add_serve(CLI::App& app, Command& run);
void add_worker(CLI::App& app, Command& run);
void add_generate(CLI::App& app, Command& run);
void add_chat(CLI::App& app, Command& run);
void add_status(CLI::App& app, Command& run);
void add_plan(CLI::App& app, Command& run);
void add_doctor(CLI::App& app, Command& run);
void add_hosts(CLI::App& app, Command& run);

}  // namespace annulus::server
