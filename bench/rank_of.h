// SPDX-License-Identifier: Apache-2.0
// rank-of: what one rank of TP x CP does in the prefill of one prompt, every layer and every chunk,
// run for real on one device without the other ranks (alone_comm.h). Times by phase are measured;
// sums over the TP group and hops that attention does not hide are modelled from a machine file and
// printed as that. The same engine, plans and shards as in serving: run_rank_of() makes a Rank.
// Then some decode steps, one by one and, where the rank can, two under way at a time, with the
// time that the device had nothing to do between them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/alone_comm.h"
#include "bench/step_ops.h"
#include "kernels/core/phase.h"
#include "parallel/rank.h"

namespace annulus::bench {

struct RankOfOptions {
  std::string model = "synthetic:405B-FP8";
  parallel::Topology topology{8, 16};
  int32_t cp_rank = 0;
  int64_t tokens = 131072, chunk_tokens = 65536;
  parallel::Variant variant = parallel::Variant::kPassKv;
  int32_t decode_steps = 0;  // behind the prompt, in either manner
  parallel::RankOptions rank;
  std::string machine = "h100-ndr";  // whose links are modelled
  std::string json;                  // file that gets a line of JSON more; empty: none
};

// One chunk of the prompt.
struct RankOfStep {
  kernels::PhaseClock::Times phase_us{};
  StepDemands demands;  // by phase; the mean of the ranks
  Traffic tp, cp;
  int64_t formula_bytes = 0;  // what the ring was to send
};

struct RankOfDecode {
  int32_t under_way = 1;
  bool graphs = false;
  int64_t replayed = 0;            // steps that were launched as a graph that was there
  double step_us = 0, gap_us = 0;  // the mean, the gap before a step
};

struct RankOfReport {
  parallel::LlamaConfig config;
  std::vector<RankOfStep> steps;
  std::vector<RankOfDecode> decode;  // of a GPU, in each manner
  double load_s = 0, wall_s = 0;
  int64_t weight_bytes = 0, kv_rows = 0, kv_bytes = 0;
};

// What the same rank would wait for, in microseconds.
struct RankOfModel {
  double sums = 0, hops = 0, collectives = 0;
};
// Errors: InvalidArgument for a machine file.
absl::StatusOr<RankOfModel> model_links(const RankOfOptions& options, const RankOfReport& report);

// What the project demands of a 405B at TP8 x CP16 and a prompt of a million: at most 70 s, at 63 %
// of what the device multiplies at. One line that says which were met; empty for any other run.
std::string rank_of_goal(const RankOfOptions& options, const parallel::LlamaConfig& config,
                         double prefill_s, double of_limit);

struct RankOfFlags {
  RankOfOptions options;
  std::string variant = "pass-kv", precision = "default";
  void add_to(CLI::App& app);
  // After parsing. A name alone is a generated model's: 8b, and 405b, which has FFNs in FP8.
  absl::Status apply();
};

// limit_tflop_s: what the device multiplied at in the same run, in limit_type; 0: not measured.
// With F8 weights more than all of a bf16 limit can be reached; published figures are of bf16 too.
absl::Status print_rank_of(const RankOfOptions& options, const RankOfReport& report,
                           const std::string& device, double limit_tflop_s, const char* limit_type);

}  // namespace annulus::bench
