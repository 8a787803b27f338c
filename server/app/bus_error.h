// SPDX-License-Identifier: Apache-2.0
// SIGBUS is what a mapped file that was cut short, or a full /dev/shm, does to a process: it ends,
// and this says why. Call once, before other threads start.
#pragma once

#include <string>

namespace annulus::server {

// model: the file or folder that stays mapped while the process lives.
void explain_bus_errors(const std::string& model);

}  // namespace annulus::server
