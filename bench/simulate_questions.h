// SPDX-License-Identifier: Apache-2.0
// What users ask the simulator: the fastest TP x CP for a model, a length and a latency; from which
// miss rate on pass-Q wins; what slower links cost; what decode costs in each layout; how far it
// scales. Every number comes from simulated runs of the engine.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "bench/simulate_flags.h"

namespace annulus::bench {

class Questions {
 public:
  // Subcommands best, passq, links, decode and scale.
  void add_to(CLI::App& app, SimFlags& flags);
  absl::Status answer(const SimFlags& flags) const;  // the one that was parsed

 private:
  absl::Status best(const SimFlags& flags) const;
  absl::Status passq(const SimFlags& flags) const;
  absl::Status links(const SimFlags& flags) const;
  absl::Status decode(const SimFlags& flags) const;
  absl::Status scale(const SimFlags& flags) const;

  CLI::App *best_ = nullptr, *passq_ = nullptr, *links_ = nullptr, *decode_ = nullptr,
           *scale_ = nullptr;
  int32_t tp_ = 8, cp_ = 4, gpus_ = 4096;
  int64_t prompt_ = 128000;
  double ttft_ms_ = 0, ttit_ms_ = 0;
  std::vector<int64_t> prompts_ = {128000, 1000000};
  std::vector<int32_t> batches_ = {1, 8, 64}, cps_ = {1, 2, 4, 8, 16, 32};
  std::string figure_;
};

}  // namespace annulus::bench
