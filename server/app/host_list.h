// SPDX-License-Identifier: Apache-2.0
// Host lists as Slurm writes them, "node[1-3,07-10],gpu-a", to the names they stand for. Pure; for
// `annulus hosts`, and for places where there is no scontrol to ask, such as containers. Order and
// names are those of `scontrol show hostnames`, with two exceptions: with three brackets and more
// in a name the last runs fastest (Slurm 22.05 mixes them), and text may follow a bracket. A number
// has at least as many digits as the first of its range. Names that come twice stay.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus::server {

inline constexpr size_t kMostHosts = size_t{1} << 16;  // as Slurm's

// InvalidArgument: where the list goes wrong, and how; the whole list is quoted.
absl::StatusOr<std::vector<std::string>> expand_hosts(absl::string_view list);

}  // namespace annulus::server
