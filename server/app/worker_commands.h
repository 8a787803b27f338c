// SPDX-License-Identifier: Apache-2.0
// How the ranks of a front end are started: here by its own supervisor, or elsewhere by commands
// that it prints. Used by `annulus serve` and `annulus doctor` (a config without a model).
#pragma once

#include "absl/status/status.h"
#include "server/app/config.h"
#include "server/app/local_workers.h"

namespace annulus::server {

// config.secret is not empty. Ranks are pinned where every thread can have a core of its own.
LocalWorkers::Options local_workers(const ServeConfig& config, int control_port);
// To stdout, one command a rank.
void print_external_commands(const ServeConfig& config, int control_port);
// FailedPrecondition where this host cannot be all ranks of the config's device. Before anything
// is started, rather than in every worker's log.
absl::Status check_local_device(const ServeConfig& config);

}  // namespace annulus::server
