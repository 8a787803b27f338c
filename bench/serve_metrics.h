// SPDX-License-Identifier: Apache-2.0
// What a load of requests amounts to, under the names and by the formulas of vLLM's serving
// benchmark (vllm bench serve --save-result), so that its plotting scripts read it: TTFT time to
// the first token, TPOT mean time of the others of a request, ITL every gap between two tokens,
// E2EL the whole request. Failed requests count as failed and in nothing else. Pure.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::bench {

struct ServedRequest {
  int input_tokens = 0, output_tokens = 0;
  double start_s = 0;              // since the load began
  double ttft_s = 0, e2el_s = 0;   // seen by the client
  std::vector<double> gaps_s;      // between tokens
  std::string error = "not sent";  // "": it succeeded

  bool ok() const { return error.empty(); }
  double tpot_s() const;
};

// "ttft:500", "tpot:50", "e2el:9000": milliseconds that a good request stays within.
absl::StatusOr<std::map<std::string, double>> parse_goodput(const std::vector<std::string>& limits);

nlohmann::json serve_metrics(const std::vector<ServedRequest>& requests, double duration_s,
                             const std::vector<double>& percentiles,
                             const std::map<std::string, double>& goodput);

// As text, in vLLM's order.
std::string metrics_text(const nlohmann::json& metrics, const std::vector<double>& percentiles);

}  // namespace annulus::bench
