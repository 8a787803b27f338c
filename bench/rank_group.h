// SPDX-License-Identifier: Apache-2.0
// N ranks as processes over UCX, driven step by step from the benchmark without gRPC: the same
// Rank, plans and results as in serving, and nothing else in the measurement. Start it before the
// process has other threads (it forks). With link_mbit > 0 (root) every rank lives in a network
// namespace of its own, whose link is shaped to that rate. With a
// trace file, every step that computes goes there too.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/limits.h"
#include "bench/network_lab.h"
#include "parallel/rank.h"
#include "server/trace_file.h"

namespace annulus::bench {

struct LoadReport {  // of one rank
  double seconds = 0;
  double cached = 0;  // share of its model file in the system's cache when it began
  int64_t weight_bytes = 0;
};

struct RankGroupOptions {
  std::string model;
  std::vector<std::string> models;  // by rank, the same model: files of their own; empty: `model`
  bool send_weights = false;        // CP rank 0 of each TP slice reads, and sends to the others
  bool cold = false;                // files are taken out of the system's cache before loading
  parallel::Topology topology{1, 2};
  parallel::RankOptions rank;
  std::string transports;   // "": UCX chooses
  std::string net_devices;  // "": all
  double link_mbit = 0;     // 0: no shaping
  bool pin = true;          // rank r's threads on cores r * threads...
  std::string trace;        // file (server/trace_file.h); "": none
};

class RankGroup {
 public:
  static absl::StatusOr<std::unique_ptr<RankGroup>> start(const RankGroupOptions& options);
  ~RankGroup();

  // Runs one step on all ranks: fills epoch, step and digest. The plan must be valid in state().
  absl::StatusOr<std::vector<parallel::StepResult>> run(parallel::StepPlan plan);

  const parallel::ShardState& state() const { return state_; }
  const parallel::PolicyInput& policy() const { return policy_; }
  const parallel::LlamaConfig& config() const { return config_; }
  // Means of the ranks, measured at the start by all of them at once.
  const Limits& limits() const { return limits_; }
  const LinearBytes& linear_bytes() const { return linear_bytes_; }  // of rank 0
  const std::vector<LoadReport>& loads() const { return loads_; }    // by world rank

 private:
  RankGroup() = default;
  absl::Status meet(const RankGroupOptions& options);  // what the ranks say once they are there
  absl::Status trace(const parallel::StepPlan& plan);
  std::vector<pid_t> pids_;
  std::vector<int> sockets_;
  parallel::ShardState state_;
  parallel::PolicyInput policy_;
  parallel::LlamaConfig config_;
  Limits limits_;
  LinearBytes linear_bytes_;
  std::vector<LoadReport> loads_;
  int64_t step_ = 0;
  std::unique_ptr<NetworkLab> lab_;  // where the link is shaped
  std::unique_ptr<server::TraceFile> trace_;
};

// The plan that appends positions [first, first + count) to a slot, ids repeating over the
// vocabulary.
parallel::StepPlan append_plan(int32_t slot, int64_t first, int32_t count,
                               parallel::Variant variant, parallel::Placement placement,
                               int32_t vocab);

}  // namespace annulus::bench
