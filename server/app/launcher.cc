// SPDX-License-Identifier: Apache-2.0
#include "server/app/launcher.h"

#include <array>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/app/host_list.h"

namespace annulus::server {
namespace {

// The variables of one launcher; nullptr: it has none for this.
struct Dialect {
  const char* name;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* leader;
  const char* leader_port;
  bool leader_is_list;
};

constexpr std::array kDialects = {
    Dialect{"RANK and WORLD_SIZE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
            false},
    Dialect{"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK", nullptr, nullptr, false},
    // SLURM_NTASKS is there in a batch script too, which is no rank; this size is not.
    Dialect{"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST",
            nullptr, true},
    Dialect{"LeaderWorkerSet", "LWS_WORKER_INDEX", "LWS_GROUP_SIZE", nullptr, "LWS_LEADER_ADDRESS",
            nullptr, false},
};

std::string text_of(const Environment& environment, const char* variable) {
  const char* value = variable == nullptr ? nullptr : environment(variable);
  return value == nullptr ? "" : value;
}

// `otherwise` where the variable is not set.
absl::StatusOr<int32_t> number_of(const Environment& environment, const char* variable, int32_t low,
                                  int32_t high, int32_t otherwise) {
  const std::string text = text_of(environment, variable);
  if (text.empty()) return otherwise;
  int32_t value = 0;
  if (absl::SimpleAtoi(text, &value) && value >= low && value <= high) return value;
  return absl::InvalidArgumentError(absl::StrCat("the environment has ", variable, "=\"", text,
                                                 "\", which is no number from ", low, " to ",
                                                 high));
}

absl::StatusOr<Launcher> read(const Environment& environment, const Dialect& dialect) {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  Launcher out;
  out.name = dialect.name;
  const auto size = number_of(environment, dialect.size, 1, kMost, 0);
  if (!size.ok()) return size.status();
  const auto rank = number_of(environment, dialect.rank, 0, *size - 1, -1);
  if (!rank.ok()) return rank.status();
  const auto local = number_of(environment, dialect.local_rank, 0, kMost, -1);
  if (!local.ok()) return local.status();
  const auto port = number_of(environment, dialect.leader_port, 1, 65535, 0);
  if (!port.ok()) return port.status();
  out.world_rank = *rank;
  out.world_size = *size;
  out.local_rank = *local;
  out.leader_port = *port;
  out.leader = text_of(environment, dialect.leader);
  if (dialect.leader_is_list && !out.leader.empty()) {
    const auto hosts = expand_hosts(out.leader);
    if (!hosts.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(dialect.leader, ": ", hosts.status().message()));
    }
    out.leader = hosts->front();
  }
  return out;
}

}  // namespace

absl::StatusOr<Launcher> read_launcher(const Environment& environment) {
  for (const Dialect& dialect : kDialects) {
    if (text_of(environment, dialect.rank).empty()) continue;
    if (text_of(environment, dialect.size).empty()) continue;
    return read(environment, dialect);
  }
  return Launcher{};
}

}  // namespace annulus::server
