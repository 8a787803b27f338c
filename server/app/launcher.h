// SPDX-License-Identifier: Apache-2.0
// What a launcher tells each of the processes it starts: which one it is, of how many, and where
// the first one is. Read from the environment once, by `annulus worker`, for flags that are absent.
// The innermost launcher is believed: inside a Slurm job torchrun or mpirun know better than the
// batch script's variables, which they inherit. In this order:
//   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT        torchrun and people
//   OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK                      mpirun
//   SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST    in a step (srun)
//   LWS_WORKER_INDEX, LWS_GROUP_SIZE, LWS_LEADER_ADDRESS          Kubernetes' LeaderWorkerSet
// A launcher counts where it gives both rank and size. Sources: PyTorch's "torchrun", environment
// variables; Open MPI 5.0, 11.1; srun(1), output environment variables; LeaderWorkerSet, labels,
// annotations and environment variables (there index and size count pods).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace annulus::server {

struct Launcher {
  std::string name;  // "" without one, then all else is empty too; else for a line in the log
  int32_t world_rank = -1;
  int32_t world_size = 0;
  int32_t local_rank = -1;  // among those of the host; -1: not told
  std::string leader;       // host of the first process; "": not told
  int32_t leader_port = 0;  // 0: not told
};

// The value of an environment variable; nullptr or "": not there.
using Environment = std::function<const char*(const char* name)>;

// InvalidArgument names the variable, what it holds and what it should.
absl::StatusOr<Launcher> read_launcher(const Environment& environment);

}  // namespace annulus::server
