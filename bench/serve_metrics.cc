// SPDX-License-Identifier: Apache-2.0
#include "bench/serve_metrics.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "bench/statistics.h"

namespace annulus::bench {
namespace {

constexpr std::pair<const char*, const char*> kMetrics[] = {
    {"ttft", "time to first token"},
    {"tpot", "time per output token but the first"},
    {"itl", "inter-token latency"},
    {"e2el", "end-to-end latency"}};

std::string percentile_name(double percent) {  // p99, p99.9
  return absl::StrFormat("p%g", percent);
}

bool within(const ServedRequest& request, const std::map<std::string, double>& goodput) {
  return std::all_of(goodput.begin(), goodput.end(), [&](const auto& limit) {
    const auto& [metric, ms] = limit;
    if (metric == "ttft") return 1e3 * request.ttft_s <= ms;
    if (metric == "tpot") return 1e3 * request.tpot_s() <= ms;
    return 1e3 * request.e2el_s <= ms;
  });
}

}  // namespace

double ServedRequest::tpot_s() const {
  return output_tokens > 1 ? (e2el_s - ttft_s) / (output_tokens - 1) : 0;
}

absl::StatusOr<std::map<std::string, double>> parse_goodput(
    const std::vector<std::string>& limits) {
  std::map<std::string, double> out;
  for (const std::string& limit : limits) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(limit, absl::MaxSplits(':', 1));
    double ms = 0;
    if ((parts.first != "ttft" && parts.first != "tpot" && parts.first != "e2el") ||
        !absl::SimpleAtod(parts.second, &ms) || !(ms > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--goodput \"", limit,
                       "\" is not ttft:MS, tpot:MS or e2el:MS with milliseconds above 0"));
    }
    out[parts.first] = ms;
  }
  return out;
}

nlohmann::json serve_metrics(const std::vector<ServedRequest>& requests, double duration_s,
                             const std::vector<double>& percentiles,
                             const std::map<std::string, double>& goodput) {
  std::map<std::string, std::vector<double>> ms;
  int completed = 0, good = 0;
  int64_t input = 0, output = 0;
  nlohmann::json lists = {
      {"input_lens", nlohmann::json::array()},  {"output_lens", nlohmann::json::array()},
      {"ttfts", nlohmann::json::array()},       {"itls", nlohmann::json::array()},
      {"start_times", nlohmann::json::array()}, {"errors", nlohmann::json::array()}};
  for (const ServedRequest& r : requests) {
    lists["input_lens"].push_back(r.input_tokens);
    lists["output_lens"].push_back(r.ok() ? r.output_tokens : 0);
    lists["ttfts"].push_back(r.ok() ? r.ttft_s : 0);
    lists["itls"].push_back(r.ok() ? r.gaps_s : std::vector<double>{});
    lists["start_times"].push_back(r.start_s);
    lists["errors"].push_back(r.error);
    if (!r.ok()) continue;
    ++completed;
    good += within(r, goodput);
    input += r.input_tokens;
    output += r.output_tokens;
    ms["ttft"].push_back(1e3 * r.ttft_s);
    ms["e2el"].push_back(1e3 * r.e2el_s);
    if (r.output_tokens > 1) ms["tpot"].push_back(1e3 * r.tpot_s());
    for (const double gap_s : r.gaps_s) ms["itl"].push_back(1e3 * gap_s);
  }
  const double per_s = duration_s > 0 ? 1 / duration_s : 0;
  nlohmann::json out = {
      {"duration", duration_s},
      {"completed", completed},
      {"failed", static_cast<int>(requests.size()) - completed},
      {"total_input_tokens", input},
      {"total_output_tokens", output},
      {"request_throughput", completed * per_s},
      {"request_goodput", goodput.empty() ? nlohmann::json() : nlohmann::json(good * per_s)},
      {"output_throughput", static_cast<double>(output) * per_s},
      {"total_token_throughput", static_cast<double>(input + output) * per_s}};
  for (const auto& [metric, title] : kMetrics) {
    const std::string tail = absl::StrCat("_", metric, "_ms");
    const std::vector<double>& values = ms[metric];
    out["mean" + tail] = mean(values);
    out["median" + tail] = percentile(values, 50);
    out["std" + tail] = deviation(values);
    for (const double p : percentiles) out[percentile_name(p) + tail] = percentile(values, p);
  }
  out.update(lists);
  return out;
}

std::string metrics_text(const nlohmann::json& m, const std::vector<double>& percentiles) {
  std::string out;
  const auto line = [&](const char* what, const char* key, const char* unit) {
    if (!m.at(key).is_null())
      absl::StrAppendFormat(&out, "%-36s %12.2f  %s\n", what, m.at(key).get<double>(), unit);
  };
  absl::StrAppendFormat(&out, "%-36s %12d\n%-36s %12d\n", "requests completed",
                        m.at("completed").get<int>(), "requests failed", m.at("failed").get<int>());
  line("duration", "duration", "s");
  absl::StrAppendFormat(&out, "%-36s %12d\n%-36s %12d\n", "input tokens",
                        m.at("total_input_tokens").get<int64_t>(), "output tokens",
                        m.at("total_output_tokens").get<int64_t>());
  line("request throughput", "request_throughput", "requests/s");
  line("request goodput", "request_goodput", "requests/s");
  line("output token throughput", "output_throughput", "tokens/s");
  line("total token throughput", "total_token_throughput", "tokens/s");
  absl::StrAppendFormat(&out, "%-36s %9s %9s %9s", "ms", "mean", "median", "std");
  for (const double p : percentiles) absl::StrAppendFormat(&out, " %9s", percentile_name(p));
  for (const auto& [metric, title] : kMetrics) {
    const std::string tail = absl::StrCat("_", metric, "_ms");
    absl::StrAppendFormat(&out, "\n%-36s", title);
    std::vector<std::string> names = {"mean", "median", "std"};
    for (const double p : percentiles) names.push_back(percentile_name(p));
    for (const std::string& name : names)
      absl::StrAppendFormat(&out, " %9.2f", m.at(name + tail).get<double>());
  }
  return out + "\n";
}

}  // namespace annulus::bench
