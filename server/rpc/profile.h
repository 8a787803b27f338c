// SPDX-License-Identifier: Apache-2.0
// MachineProfile by field name, as it travels in Ready and GetCluster. Pure.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/ring_policy.h"

namespace annulus::server {

std::map<std::string, double> profile_values(const parallel::MachineProfile& profile);
// InvalidArgument: a field is missing, unknown, not finite or not positive (overlap: within 0 to
// 1).
absl::StatusOr<parallel::MachineProfile> profile_from_values(
    const std::map<std::string, double>& values);

}  // namespace annulus::server
