// SPDX-License-Identifier: Apache-2.0
// annulus-bench simulate learn: epochs of a machine in virtual time whose ranks measure wrong, with
// noise on what they measure and on every observed time: does the learned profile converge, and do
// decisions stand still?
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "bench/simulate_flags.h"

namespace annulus::bench {

class SimulatedLearning {
 public:
  void add_to(CLI::App& app, SimFlags& flags);
  bool parsed() const { return command_->parsed(); }
  absl::Status run(const SimFlags& flags) const;

 private:
  CLI::App* command_ = nullptr;
  int32_t tp_ = 8, cp_ = 4;
  int epochs_ = 12, samples_ = 6;
  double wrong_attention_ = 1, wrong_transfers_ = 0.25, noise_ = 0.2;
  uint64_t seed_ = 1;
  std::vector<int64_t> totals_ = {32768, 131072};
  std::vector<double> miss_percent_ = {0.5, 1, 2, 3, 4, 6, 10, 20, 50, 100};
};

}  // namespace annulus::bench
