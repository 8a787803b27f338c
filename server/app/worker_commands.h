// SPDX-License-Identifier: Apache-2.0
// How the ranks of a front end are started: here by its own supervisor, or elsewhere by commands
// that it prints. Used by `annulus serve` and `annulus doctor` (a config without a model).
#pragma once

#include "absl/status/status.h"
#include "parallel/model/checkpoint.h"
#include "server/app/config.h"
#include "server/app/local_workers.h"

namespace annulus::server {

// config.secret is not empty. Ranks are pinned where every thread can have a core of its own.
LocalWorkers::Options local_workers(const ServeConfig& config, int control_port);
// To stdout, one command a rank.
void print_external_commands(const ServeConfig& config, int control_port);
// Settles what flags leave open: threads of a rank on this machine, and whether whoever starts
// ranks knows the secret. FailedPrecondition where this host cannot be all local ranks on the
// config's device: said before anything is started, rather than in every worker's log.
absl::Status prepare_ranks(ServeConfig& config);
// FailedPrecondition where GPUs of this host have too little memory for local ranks of this model:
// said before anything is loaded.
absl::Status check_local_room(const ServeConfig& config, const parallel::Checkpoint& checkpoint);

}  // namespace annulus::server
