// SPDX-License-Identifier: Apache-2.0
// What `annulus-bench latency` knows about one point (layout, length, miss rate, variant), its form
// in JSON and CSV, the correctness of rows against each other, and merging the files of several
// runs. Pure but for reading files; any thread. Times in files are milliseconds unless a name says
// otherwise; `breakdown` is the mean over ranks of one request or one token, in microseconds.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::bench {

// One token of the greedy answer, and by how much it led the next likely one (natural log).
struct CheckedToken {
  uint32_t id = 0;
  double logprob = 0, lead = 0;
};

// Of an answer against the reference of its length: positions up to the first where they part.
struct Correctness {
  bool reference = false;  // it is the reference
  int compared = 0, wrong = 0;
  bool parted = false;  // ids part where both were as good as equal: not wrong
  double worst = 0;     // difference of log-probabilities
  bool ok() const { return wrong == 0; }
};

using Breakdown = std::map<std::string, double>;  // us by part: kParts, and "steps", their sum

// In the order of a stacked bar. "gemm" and "other" need a server that runs with --profile, "rest"
// stands for both where it does not. Waits are exposed: what overlaps with computing is not there.
inline constexpr const char* kParts[] = {"attention",  "sendrecv", "all_to_all", "all_gather",
                                         "other_wait", "gemm",     "other",      "rest"};

struct LatencyRow {
  int tp = 1, cp = 1;
  int64_t length = 0, cached = 0;        // tokens of the prompt; of these not computed again
  double miss = 1;                       // as asked for; cached is rounded
  std::string variant, chosen;           // auto or forced; most of the prompt's steps
  std::vector<double> ttft_ms, ttit_ms;  // samples
  Breakdown prefill_us, decode_us;       // of a request, of a token
  std::vector<CheckedToken> answer;      // of the first turn
  int strayed = 0;                       // later turns whose first token was another
  Correctness check;

  int64_t fresh() const { return length - cached; }
};

struct LatencyRun {
  nlohmann::json parameters, servers = nlohmann::json::array();
  std::string model, precision;
  std::vector<LatencyRow> rows;
};

// Bounds of log-probabilities, as tests/golden holds them: fp32 5e-4 between layouts, else 0.8.
double logprob_bound(const std::string& precision);

Correctness compare(const std::vector<CheckedToken>& reference,
                    const std::vector<CheckedToken>& answer, double bound);

// Fills every row's check. The reference of a length is its first row.
void check_rows(LatencyRun& run);
int wrong_rows(const LatencyRun& run);
double worst_difference(const LatencyRun& run);

nlohmann::json to_json(const LatencyRun& run);
absl::StatusOr<LatencyRun> run_from_json(const nlohmann::json& json);
std::string to_csv(const LatencyRun& run);

// Rows of all files; one that was measured again replaces the earlier. Different models or
// precisions do not mix.
absl::StatusOr<LatencyRun> merge(std::vector<LatencyRun> runs);
absl::StatusOr<LatencyRun> read_runs(const std::vector<std::string>& files);

}  // namespace annulus::bench
