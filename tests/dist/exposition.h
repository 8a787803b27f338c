// SPDX-License-Identifier: Apache-2.0
// Prometheus' text format, version 0.0.4, read more strictly than Prometheus does
// (prometheus.io/docs/instrumenting/exposition_formats): every family has HELP and TYPE once, its
// samples follow it, counters end in _total, histograms are cumulative and end in +Inf = _count.
// One thread.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "tests/dist/command.h"

namespace annulus::testing {

struct Exposition {
  std::map<std::string, std::string> types;  // by family
  // By series as it is written, labels in the order of the text: name{rank="0",where="ring"}.
  std::map<std::string, double> samples;

  // Fails the test where there is no such series.
  double at(const std::string& series) const;
  bool has(const std::string& series) const { return samples.contains(series); }
};

absl::StatusOr<Exposition> parse_exposition(std::string_view text);

// The port that `annulus serve --metrics` has printed.
int metrics_port(const Process& serve);
// GET path; the whole answer, "" where none came within `seconds`.
std::string http_get(int port, const std::string& path, double seconds = 10);
// GET /metrics; fails the test where the answer is not 200 or its text not strict.
Exposition scrape(int port);

// Fails the test for every counter (histograms' included) that is gone or has fallen since
// `before`.
void expect_nothing_fell(const Exposition& before, const Exposition& after);

}  // namespace annulus::testing
