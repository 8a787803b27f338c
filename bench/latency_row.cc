// SPDX-License-Identifier: Apache-2.0
#include "bench/latency_row.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/statistics.h"

namespace annulus::bench {
namespace {

constexpr const char* kFormat = "annulus-bench latency 1";

nlohmann::json samples(const std::vector<double>& ms) {
  return {{"median", percentile(ms, 50)},
          {"p95", percentile(ms, 95)},
          {"min", percentile(ms, 0)},
          {"samples", ms}};
}

nlohmann::json to_json(const LatencyRow& row) {
  nlohmann::json answer = nlohmann::json::array();
  for (const CheckedToken& token : row.answer)
    answer.push_back({token.id, token.logprob, token.lead});
  return {{"tp", row.tp},
          {"cp", row.cp},
          {"length", row.length},
          {"cached", row.cached},
          {"miss", row.miss},
          {"variant", row.variant},
          {"chosen", row.chosen},
          {"ttft_ms", samples(row.ttft_ms)},
          {"ttit_ms", samples(row.ttit_ms)},
          {"breakdown_us", {{"prefill", row.prefill_us}, {"decode", row.decode_us}}},
          {"answer", answer},
          {"strayed", row.strayed},
          {"check",
           {{"ok", row.check.ok()},
            {"reference", row.check.reference},
            {"compared", row.check.compared},
            {"wrong", row.check.wrong},
            {"parted", row.check.parted},
            {"worst", row.check.worst}}}};
}

LatencyRow row_from_json(const nlohmann::json& json) {
  LatencyRow row;
  json.at("tp").get_to(row.tp);
  json.at("cp").get_to(row.cp);
  json.at("length").get_to(row.length);
  json.at("cached").get_to(row.cached);
  json.at("miss").get_to(row.miss);
  json.at("variant").get_to(row.variant);
  json.at("chosen").get_to(row.chosen);
  json.at("ttft_ms").at("samples").get_to(row.ttft_ms);
  json.at("ttit_ms").at("samples").get_to(row.ttit_ms);
  json.at("breakdown_us").at("prefill").get_to(row.prefill_us);
  json.at("breakdown_us").at("decode").get_to(row.decode_us);
  json.at("strayed").get_to(row.strayed);
  for (const nlohmann::json& token : json.at("answer"))
    row.answer.push_back({token.at(0), token.at(1), token.at(2)});
  return row;
}

// Throws where something is missing that is printed or drawn later.
void check_server(const nlohmann::json& server) {
  for (const char* field : {"address", "tp", "cp", "context", "ranks"}) server.at(field);
  for (const nlohmann::json& rank : server.at("ranks")) {
    for (const char* field :
         {"world_rank", "tp_rank", "cp_rank", "pid", "host", "device", "threads"})
      rank.at(field);
  }
}

auto key(const LatencyRow& row) {
  return std::tie(row.tp, row.cp, row.length, row.cached, row.variant);
}

}  // namespace

double logprob_bound(const std::string& precision) {
  return precision == "fp32" ? 5e-4 : 0.8;
}

Correctness compare(const std::vector<CheckedToken>& reference,
                    const std::vector<CheckedToken>& answer, double bound) {
  Correctness out;
  for (size_t i = 0; i < std::min(reference.size(), answer.size()); ++i) {
    if (reference[i].id != answer[i].id) {
      // Either may come out on top where neither leads by more than both can be off.
      out.parted = std::max(reference[i].lead, answer[i].lead) <= 2 * bound;
      out.wrong += !out.parted;
      return out;
    }
    ++out.compared;
    const double difference = std::abs(reference[i].logprob - answer[i].logprob);
    out.worst = std::max(out.worst, difference);
    out.wrong += !(difference <= bound);  // NaN is wrong
  }
  out.wrong += reference.size() != answer.size() || reference.empty();
  return out;
}

void check_rows(LatencyRun& run) {
  std::map<int64_t, size_t> references;
  for (size_t i = 0; i < run.rows.size(); ++i) {
    LatencyRow& row = run.rows[i];
    const size_t reference = references.try_emplace(row.length, i).first->second;
    row.check = compare(run.rows[reference].answer, row.answer, logprob_bound(run.precision));
    row.check.reference = reference == i;
    const bool close =
        !row.answer.empty() && row.answer.front().lead <= 2 * logprob_bound(run.precision);
    if (!close) row.check.wrong += row.strayed;
  }
}

int wrong_rows(const LatencyRun& run) {
  return static_cast<int>(std::count_if(run.rows.begin(), run.rows.end(),
                                        [](const LatencyRow& row) { return !row.check.ok(); }));
}

double worst_difference(const LatencyRun& run) {
  double worst = 0;
  for (const LatencyRow& row : run.rows) worst = std::max(worst, row.check.worst);
  return worst;
}

nlohmann::json to_json(const LatencyRun& run) {
  nlohmann::json rows = nlohmann::json::array();
  for (const LatencyRow& row : run.rows) rows.push_back(to_json(row));
  return {{"format", kFormat},
          {"model", run.model},
          {"precision", run.precision},
          {"parameters", run.parameters},
          {"servers", run.servers},
          {"correctness",
           {{"wrong_rows", wrong_rows(run)},
            {"worst", worst_difference(run)},
            {"bound", logprob_bound(run.precision)}}},
          {"rows", rows}};
}

absl::StatusOr<LatencyRun> run_from_json(const nlohmann::json& json) {
  if (!json.is_object() || json.value("format", nlohmann::json()) != kFormat) {
    return absl::InvalidArgumentError("not a result of annulus-bench latency --json");
  }
  LatencyRun run;
  try {
    run.parameters = json.at("parameters");
    run.servers = json.at("servers");
    if (!run.parameters.is_object() || !run.servers.is_array())
      return absl::InvalidArgumentError("damaged result: parameters or servers");
    for (const nlohmann::json& server : run.servers) check_server(server);
    json.at("model").get_to(run.model);
    json.at("precision").get_to(run.precision);
    for (const nlohmann::json& row : json.at("rows")) run.rows.push_back(row_from_json(row));
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("damaged result: ", error.what()));
  }
  check_rows(run);
  return run;
}

std::string to_csv(const LatencyRun& run) {
  std::string out =
      "tp,cp,length,cached,miss,variant,chosen,ttft_median_ms,ttft_p95_ms,ttft_samples,"
      "ttit_median_ms,ttit_p95_ms,ttit_samples,check,worst_logprob_difference";
  for (const char* phase : {"prefill", "decode"}) {
    for (const char* part : kParts) absl::StrAppend(&out, ",", phase, "_", part, "_us");
  }
  out += "\n";
  for (const LatencyRow& row : run.rows) {
    absl::StrAppendFormat(&out, "%d,%d,%d,%d,%g,%s,%s,%.3f,%.3f,%d,%.3f,%.3f,%d,%s,%.3g", row.tp,
                          row.cp, row.length, row.cached, row.miss, row.variant, row.chosen,
                          percentile(row.ttft_ms, 50), percentile(row.ttft_ms, 95),
                          row.ttft_ms.size(), percentile(row.ttit_ms, 50),
                          percentile(row.ttit_ms, 95), row.ttit_ms.size(),
                          row.check.ok() ? "OK" : "WRONG", row.check.worst);
    for (const Breakdown* breakdown : {&row.prefill_us, &row.decode_us}) {
      for (const char* part : kParts) {
        const auto it = breakdown->find(part);
        absl::StrAppend(&out, ",");
        if (it != breakdown->end()) absl::StrAppendFormat(&out, "%.1f", it->second);
      }
    }
    out += "\n";
  }
  return out;
}

absl::StatusOr<LatencyRun> merge(std::vector<LatencyRun> runs) {
  if (runs.empty()) return absl::InvalidArgumentError("nothing to merge");
  LatencyRun all = std::move(runs.front());
  for (size_t i = 1; i < runs.size(); ++i) {
    LatencyRun& run = runs[i];
    if (run.model != all.model || run.precision != all.precision) {
      return absl::InvalidArgumentError(
          absl::StrCat("runs of different models do not mix: ", all.model, " in ", all.precision,
                       ", then ", run.model, " in ", run.precision));
    }
    for (const nlohmann::json& server : run.servers) all.servers.push_back(server);
    for (LatencyRow& row : run.rows) {
      const auto same = std::find_if(all.rows.begin(), all.rows.end(),
                                     [&](const LatencyRow& old) { return key(old) == key(row); });
      if (same == all.rows.end()) {
        all.rows.push_back(std::move(row));
      } else {
        *same = std::move(row);
      }
    }
  }
  std::set<int64_t> lengths;
  std::set<double, std::greater<>> misses;
  std::set<std::string> variants;
  for (const LatencyRow& row : all.rows) {
    lengths.insert(row.length);
    misses.insert(row.miss);
    variants.insert(row.variant);
  }
  all.parameters["lengths"] = lengths;
  all.parameters["misses"] = misses;
  all.parameters["variants"] = variants;
  check_rows(all);
  return all;
}

absl::StatusOr<LatencyRun> read_runs(const std::vector<std::string>& files) {
  std::vector<LatencyRun> runs;
  for (const std::string& file : files) {
    std::ifstream in(file);
    if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", file));
    const std::string text(std::istreambuf_iterator<char>(in), {});
    auto run = run_from_json(nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false));
    if (!run.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", run.status().message()));
    }
    runs.push_back(*std::move(run));
  }
  return merge(std::move(runs));
}

}  // namespace annulus::bench
