// SPDX-License-Identifier: Apache-2.0
// What `annulus-bench latency` leaves: a table in the form of nccl-tests' (what was run in lines
// with '#', points down the page, a correctness column, one verdict at the end), files, and figures
// (bench/latency_plot.py beside the program, run by a Python that has matplotlib). One thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/latency_row.h"

namespace annulus::bench {

void print_head(const LatencyRun& run);
void print_server(const nlohmann::json& server);
void print_columns();
void print_row(const LatencyRow& row, double bound);
void print_verdict(const LatencyRun& run);

absl::Status write_file(const std::string& path, const std::string& content);
// Asked before anything is measured; "" is no file.
absl::Status check_writable(const std::string& path);

// The interpreter: `wanted`, else that of deploy/install --tests, else python3. An error where it
// cannot draw: said before anything is measured.
absl::StatusOr<std::string> plotting_python(const std::string& wanted);

// Writes the figures (SVG and PNG) into the folder, and prints their names.
absl::Status plot(const std::string& python, const LatencyRun& run, const std::string& folder);

}  // namespace annulus::bench
