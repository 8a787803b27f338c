// SPDX-License-Identifier: Apache-2.0
// Where the time of a step goes: ranks as processes (bench/rank_group.h) that keep a phase clock
// (kernels/core/phase.h), driven through a prompt in chunks, then through decode steps. Prints one
// column a rank and workload: milliseconds and share by phase. Forks: call before the process has
// other threads.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "bench/rank_group.h"

namespace annulus::bench {

struct ProfileWork {
  std::vector<int> prompts;
  int chunk = 512;
  int decode_steps = 64;  // after each prompt
};

absl::Status print_profile(RankGroupOptions options, const ProfileWork& work);

}  // namespace annulus::bench
