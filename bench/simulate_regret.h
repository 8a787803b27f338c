// SPDX-License-Identifier: Apache-2.0
// annulus-bench simulate regret: what each way of choosing a variant loses to the fastest, in
// virtual time, over machines x CP x lengths x miss rates. Every variant of every row is run by the
// engine (the real scheduler, shards and ring), and once more as the scheduler itself chooses.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/choosers.h"
#include "bench/simulate_flags.h"

namespace annulus::bench {

class SimulatedRegret {
 public:
  void add_to(CLI::App& app);
  bool parsed() const { return command_->parsed(); }
  absl::Status run();

 private:
  struct Sweep {  // of one machine
    SimFlags flags;
    int32_t tp = 1;
    std::vector<Chooser> choosers = bench::choosers();
    int rows = 0;
  };
  absl::Status rows_of(Sweep& sweep, int32_t cp);
  absl::Status row(Sweep& sweep, int32_t cp, int64_t total, double miss_percent);

  CLI::App* command_ = nullptr;
  std::vector<std::string> machines_;
  std::string model_;
  int32_t tp_ = 0;
  std::vector<int32_t> cps_ = {4, 8, 16, 64};
  std::vector<int64_t> totals_ = {8192, 32768, 131072};
  std::vector<double> miss_percent_ = {0.5, 1, 2, 3, 4, 6, 10, 20, 50, 100};
  bool each_row_ = false;
  std::vector<Chooser> choosers_ = bench::choosers();  // over all machines
  int rows_ = 0;
};

}  // namespace annulus::bench
