// SPDX-License-Identifier: Apache-2.0
// What the flags of `annulus serve` mean, and defaults that depend on the machine. Plain data and
// pure functions, but for looking at the environment. Used by the cli_ files and serve.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/queue.h"
#include "kernels/weight.h"
#include "parallel/model/config.h"
#include "parallel/step.h"
#include "parallel/topology.h"
#include "server/weight_routes.h"

namespace annulus::server {

struct HostPort {
  std::string host;
  int port = 0;
};

struct ServeConfig {
  std::string model;  // "": ranks are examined, and serve nothing
  parallel::Topology topology;
  parallel::ConfigOverrides overrides;
  std::string host = "127.0.0.1";
  int port = 50051;
  std::optional<HostPort> metrics;             // empty: none
  std::string ready_file;                      // gets the port once ready
  std::optional<parallel::Variant> attention;  // empty: auto
  kernels::Precision precision = kernels::Precision::kDefault;
  WeightPolicy weights = WeightPolicy::kAuto;
  int threads = 0;  // a rank; 0: cores / ranks
  kernels::CpuIsa isa = kernels::CpuIsa::kPortable;
  std::string device = "cpu";         // or "cuda"
  std::string gpu_attention = "own";  // or "cudnn"
  bool local_workers = true;
  std::string control_host = "127.0.0.1";
  int control_port = 0;
  std::string secret;            // "": drawn
  bool secret_is_known = false;  // to whoever starts the workers: it is not printed
  bool debug_requests = false;
  bool profile = false;
  std::string trace;  // file; empty: none
  bool cuda_graphs = true, tune_gemm = false;
  int chunk_tokens = 0;  // 0: the scheduler's choice
  int max_step_ms = 500;
  int max_running = 64;
  int max_queue = 256;
  int max_message_mib = 256;
  int page_tokens = 64;
  int64_t kv_rows = 0;  // a rank; 0: what the context needs
  int workspace_mib = 256;
  double drain_timeout_s = 30;
  double orphan_timeout_s = 60;
  std::string log_level = "info";
};

// $XDG_CACHE_HOME or ~/.cache, then annulus/models/SmolLM2-135M-Instruct.Q4_1.gguf.
std::string default_model_path();

absl::StatusOr<kernels::Precision> parse_precision(const std::string& text);
const char* name(kernels::Precision precision);
absl::StatusOr<std::optional<parallel::Variant>> parse_attention(const std::string& text);
// InvalidArgument where a flag for GPUs could do nothing: without one, or with this precision.
absl::Status check_gpu_flags(const ServeConfig& config);
// HOST:PORT, or PORT on the loopback. IPv4 or a name: CivetWeb is built without IPv6.
absl::StatusOr<HostPort> parse_metrics(const std::string& text);

// Of the arguments for `annulus worker`: everything but --connect, --rank and the secret.
std::vector<std::string> worker_flags(const ServeConfig& config);

// As a shell would need it.
std::string shell_command(const std::vector<std::string>& arguments);

// 128 random bits in hex.
std::string draw_secret();

// To stderr, "HH:MM:SS.mmm level [who] line". False: no such level.
bool set_up_logging(const std::string& who, const std::string& level);

}  // namespace annulus::server
