// SPDX-License-Identifier: Apache-2.0
// What `annulus doctor` prints: for people, and for scripts. Pure.
#pragma once

#include <string>

#include "parallel/topology.h"
#include "server/examination.h"
#include "server/rpc/coordinator.h"

namespace annulus::server {

struct DoctorReport {
  parallel::Topology topology;
  Examined examined;
  Diagnosis diagnosis;
};

// A table with a line a rank (medians of the rounds), facts of the hosts, findings, the verdict.
std::string report_text(const DoctorReport& report);
// {"build", "tp", "cp", "healthy", "ranks": [{"world_rank", "host", "pid", "figures": {NAME:
// [rounds]}, "facts": {...}}], "findings": [{"ranks", "figure", "line"}], "remarks": [...]}
std::string report_json(const DoctorReport& report);

}  // namespace annulus::server
