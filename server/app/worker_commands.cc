// SPDX-License-Identifier: Apache-2.0
#include "server/app/worker_commands.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/comm_ucx.h"
#include "server/app/cores.h"
#include "server/app/device.h"
#include "server/host_port.h"

namespace annulus::server {
namespace {

// FailedPrecondition where this host cannot be all ranks of the config's device.
absl::Status check_local_device(const ServeConfig& config) {
  if (config.device != "cuda") return absl::OkStatus();
  const EpochWish wish{config.topology, config.gpu_attention == "cudnn"};
  if (wish.cudnn_attention) {  // before the GPU: a library is sooner mended
    if (auto here = check_cudnn(); !here.ok()) return here;
  }
  const auto gpu = make_cuda_device(0);
  if (!gpu.ok()) return gpu.status();
  if (auto ready = (*gpu)->ready_for(wish); !ready.ok()) return ready;
  if (config.topology.world() <= cuda_device_count()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(config.topology.world(), " ranks need as many GPUs; this host has ",
                   cuda_device_count(), ": lower --tp or --cp, or use --workers external"));
}

}  // namespace

LocalWorkers::Options local_workers(const ServeConfig& config, int control_port) {
  const int world = config.topology.world();
  const std::vector<int> allowed = allowed_cores();
  // What a quota allows may be any of the cores: other containers would pin theirs to the same.
  const bool ours = usable_cores() == std::ssize(allowed);
  const auto cores = cores_of_ranks(world, config.threads, ours ? allowed : std::vector<int>());
  // The wildcard address is no place to connect to.
  const std::string host = is_wildcard(config.control_host) ? "127.0.0.1" : config.control_host;
  const std::string address = join_host_port(host, control_port);
  LocalWorkers::Options options;
  for (int rank = 0; rank < world; ++rank) {
    LocalWorkers::Child child;
    child.arguments = {"annulus", "worker",           "--connect",    address,
                       "--rank",  absl::StrCat(rank), "--transports", parallel::kLocalTransports};
    const std::vector<std::string> flags = worker_flags(config);
    child.arguments.insert(child.arguments.end(), flags.begin(), flags.end());
    child.cores = cores[static_cast<size_t>(rank)];
    options.children.push_back(std::move(child));
  }
  // Not among the arguments, which everybody on this machine can read.
  options.environment.push_back("ANNULUS_SECRET=" + config.secret);
  return options;
}

void print_external_commands(const ServeConfig& config, int control_port) {
  std::string host = config.control_host;
  if (is_wildcard(host)) {
    char name[256] = {};
    host = gethostname(name, sizeof(name) - 1) == 0 ? name : "THIS_HOST";
  }
  std::printf("annulus: waiting for %d workers; start each with one of\n", config.topology.world());
  for (int rank = 0; rank < config.topology.world(); ++rank) {
    std::vector<std::string> command = {"annulus",   "worker",
                                        "--connect", join_host_port(host, control_port),
                                        "--rank",    absl::StrCat(rank)};
    const std::vector<std::string> flags = worker_flags(config);
    command.insert(command.end(), flags.begin(), flags.end());
    // Arguments can be read by everybody on a machine, the environment by its owner.
    const std::string secret =
        config.secret_is_known ? "\"$ANNULUS_SECRET\"" : shell_command({config.secret});
    std::printf("  ANNULUS_SECRET=%s %s\n", secret.c_str(), shell_command(command).c_str());
  }
  std::fflush(stdout);
}

absl::Status prepare_ranks(ServeConfig& config) {
  const char* known = std::getenv("ANNULUS_SECRET");
  config.secret_is_known = known != nullptr && *known != '\0' && config.secret == known;
  // Workers that attach over the loopback share this machine; others know their own.
  const bool here = config.local_workers || config.control_host == "127.0.0.1";
  if (config.threads == 0 && here) {
    config.threads = default_threads(config.topology.world(), usable_cores());
  }
  return config.local_workers ? check_local_device(config) : absl::OkStatus();
}

absl::Status check_local_room(const ServeConfig& config, const parallel::Checkpoint& checkpoint) {
  if (config.device != "cuda" || !config.local_workers) return absl::OkStatus();
  const auto rooms = room_of_gpus(config.topology.world());
  if (!rooms.ok()) return rooms.status();
  parallel::MemoryQuestion question;
  question.topology = config.topology;
  question.context = checkpoint.config().context;
  question.kv_rows = config.kv_rows;
  question.precision = config.precision;
  question.gpu = true;
  if (config.chunk_tokens > 0) question.chunk_tokens = config.chunk_tokens;
  question.page_tokens = config.page_tokens;
  question.workspace_limit_bytes = int64_t{config.workspace_mib} << 20;
  for (const DeviceRoom& room : *rooms) {
    if (auto enough = check_room(checkpoint, question, room); !enough.ok()) return enough;
  }
  return absl::OkStatus();
}

}  // namespace annulus::server
