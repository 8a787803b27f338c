// SPDX-License-Identifier: Apache-2.0
// The engine in virtual time: the real scheduler makes the plans of a workload, every CP rank of
// the real engine (parallel/rank) runs them on a device without memory, and the replay says when
// each step ends. TP ranks are symmetric: one rank stands for its TP group. Layers are the same to
// a rank, so the engine runs kRecordedLayers of them, which are CHECKed to be equal record by
// record, and the middle one is repeated. Not simulated: the host's work outside of ops (launch
// costs apart), the front end's turn between prompt steps, sampling on the host. Errors:
// InvalidArgument for layouts that cannot be, worded with model and machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/simulate_cost.h"
#include "bench/simulate_replay.h"
#include "parallel/model/config.h"
#include "parallel/step.h"
#include "parallel/topology.h"
#include "server/trace_file.h"

namespace annulus::bench {

inline constexpr int32_t kRecordedLayers = 3;
inline constexpr int32_t kMostRanks = 4096;

struct SimModel {
  parallel::LlamaConfig config;
  double attention_weight_bytes = 2, ffn_weight_bytes = 2, head_weight_bytes = 2;

  double weight_bytes(int32_t tp) const;  // of one rank
  double kv_row_bytes(int32_t tp) const;  // of one token on one rank, all layers
};
// "llama-405b", "llama-70b", "llama-8b", "smollm2-135m", or the path of a config.json.
absl::StatusOr<SimModel> sim_model(const std::string& name_or_path);

struct Workload {
  int64_t cached = 0;                        // tokens of the session that have KV already
  int64_t prompt = 0;                        // new tokens, at least 2 behind a cached session
  int32_t answer = 1;                        // tokens; all but the first take a decode step
  int32_t batch = 1;                         // such sequences at once
  std::optional<parallel::Variant> variant;  // empty: the policy's
  double max_step_us = 1e15;                 // chunks of the prompt
  int64_t workspace_limit_bytes = int64_t{8} << 30;
};

struct SimulatedStep {
  bool decode = false;
  int64_t new_tokens = 0;
  std::vector<parallel::Variant> variants;
  StepTimes times;
};

struct Simulated {
  std::vector<SimulatedStep> prefill, decode;  // without those of the cached session
  int32_t layers = 0;
  double ttft_us() const;
  double attention_us() const;  // of the prompt: TTFT less linear layers, TP sums and norms
  double ttit_us() const;       // mean of the decode steps; 0: none
};

std::string variants_text(const std::vector<parallel::Variant>& variants);

// Whether the layout can be on this machine at all; not whether KV fits.
absl::Status check_layout(const SimModel& model, const Machine& machine, parallel::Topology t);
// Bytes a rank needs for weights and the KV of this workload.
double rank_bytes(const SimModel& model, parallel::Topology t, const Workload& work);

// What the ranks of this layout would choose by, from what they would measure.
parallel::PolicyInput policy_of(const SimModel& model, const Machine& machine,
                                parallel::Topology topology, const Workload& work);

// all_layers: runs every layer through the engine, for tests of the repeated one. trace: gets every
// timed step, in virtual time, one process a CP rank.
absl::StatusOr<Simulated> simulate(const SimModel& model, const Machine& machine,
                                   parallel::Topology topology, const Workload& work,
                                   bool all_layers = false, server::TraceFile* trace = nullptr);

}  // namespace annulus::bench
