// SPDX-License-Identifier: Apache-2.0
#include "server/app/doctor_report.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "parallel/examine.h"
#include "server/app/build.h"
#include "server/outliers.h"

namespace annulus::server {
namespace {

using parallel::Figure;
using parallel::Topology;

std::string value_text(double value) {
  return std::isnan(value) ? "-" : absl::StrFormat("%.4g", value);
}

std::string fact_of(const RankExamination& rank, const char* fact) {
  const auto it = rank.facts.find(fact);
  return it == rank.facts.end() ? "" : it->second;
}

// Columns of the table that have something to say in this topology.
std::vector<std::pair<Figure, const char*>> columns(const Topology& topology) {
  std::vector<std::pair<Figure, const char*>> out = {
      {Figure::kGemm, "GFLOP/s"}, {Figure::kRead, "read GB/s"}, {Figure::kCopy, "copy GB/s"}};
  if (topology.cp > 1) {
    out.insert(out.end(), {{Figure::kCpBandwidth, "CP GB/s"}, {Figure::kCpLatency, "CP us"}});
  }
  if (topology.tp > 1) {
    out.insert(out.end(), {{Figure::kTpBandwidth, "TP GB/s"}, {Figure::kTpLatency, "TP us"}});
  }
  return out;
}

// What is the same on several ranks, once: "Linux 6.1 (ranks 0, 1)".
std::string grouped(const DoctorReport& report, const char* fact) {
  std::map<std::string, std::vector<size_t>> by_value;
  const auto& all = report.examined.examinations;
  for (size_t r = 0; r < all.size(); ++r) by_value[fact_of(all[r], fact)].push_back(r);
  std::vector<std::string> parts;
  for (const auto& [value, ranks] : by_value) {
    if (value.empty()) continue;
    const bool everybody = ranks.size() == all.size();
    parts.push_back(everybody ? value
                              : absl::StrCat(value, " (ranks ", absl::StrJoin(ranks, ", "), ")"));
  }
  return absl::StrJoin(parts, "; ");
}

std::string table(const DoctorReport& report) {
  const auto figures = columns(report.topology);
  std::string out = absl::StrFormat("%4s %3s %3s %8s %8s %8s %6s", "rank", "tp", "cp", "pid",
                                    "threads", "cores", "MHz");
  for (const auto& [figure, title] : figures) absl::StrAppendFormat(&out, " %10s", title);
  out += "  on, over\n";
  std::vector<std::vector<double>> medians(figures.size());
  for (size_t r = 0; r < report.examined.ranks.size(); ++r) {
    const RankInfo& info = report.examined.ranks[r];
    const RankExamination& rank = report.examined.examinations[r];
    const std::string mhz = fact_of(rank, fact::kMhz), cores = fact_of(rank, fact::kCores);
    absl::StrAppendFormat(&out, "%4d %3d %3d %8d %8d %8s %6s", r,
                          report.topology.tp_rank(info.world_rank),
                          report.topology.cp_rank(info.world_rank), info.pid, info.threads,
                          cores.empty() ? "-" : cores, mhz.empty() ? "-" : mhz);
    for (size_t f = 0; f < figures.size(); ++f) {
      const double value = figure_of(rank, parallel::name(figures[f].first));
      if (!std::isnan(value)) medians[f].push_back(value);
      absl::StrAppendFormat(&out, " %10s", value_text(value));
    }
    absl::StrAppend(&out, "  ", info.host);
    const std::pair<const char*, std::string> links[] = {{"CP", fact_of(rank, fact::kCpTransport)},
                                                         {"TP", fact_of(rank, fact::kTpTransport)}};
    for (const auto& [group, transports] : links) {
      if (transports.empty()) continue;
      const std::string kind = transport_kind(transports);
      absl::StrAppend(&out, ", ", group, " ", kind,
                      kind == transports ? "" : " (" + transports + ")");
    }
    out += "\n";
  }
  absl::StrAppendFormat(&out, "%46s", "median");
  for (const std::vector<double>& values : medians) {
    absl::StrAppendFormat(&out, " %10s", value_text(values.empty() ? NAN : median(values)));
  }
  return out + "\n";
}

nlohmann::json findings_json(const std::vector<Finding>& findings) {
  nlohmann::json out = nlohmann::json::array();
  for (const Finding& finding : findings) {
    out.push_back({{"ranks", finding.ranks}, {"figure", finding.figure}, {"line", finding.line}});
  }
  return out;
}

}  // namespace

std::string report_text(const DoctorReport& report) {
  std::set<std::string> hosts;
  for (const RankInfo& rank : report.examined.ranks) hosts.insert(rank.host);
  const size_t findings = report.diagnosis.findings.size();
  std::string out = absl::StrFormat(
      "annulus doctor %s: tp %d x cp %d on %d host%s, medians of the rounds\n", kBuild,
      report.topology.tp, report.topology.cp, hosts.size(), hosts.size() == 1 ? "" : "s");
  out += table(report);
  const std::pair<const char*, const char*> facts[] = {
      {"CPU", fact::kCpu},          {"governor", fact::kGovernor}, {"NUMA nodes", fact::kNumaNodes},
      {"kernel", fact::kKernel},    {"UCX", fact::kUcx},           {"NCCL", fact::kNccl},
      {"GPU driver", fact::kDriver}};
  for (const auto& [title, fact] : facts) {
    const std::string text = grouped(report, fact);
    if (!text.empty()) absl::StrAppend(&out, title, ": ", text, "\n");
  }
  for (const Finding& finding : report.diagnosis.remarks) {
    absl::StrAppend(&out, "remark: ", finding.line, "\n");
  }
  for (const Finding& finding : report.diagnosis.findings) {
    absl::StrAppend(&out, "FINDING: ", finding.line, "\n");
  }
  absl::StrAppend(
      &out,
      findings == 0 ? "healthy" : absl::StrCat(findings, findings == 1 ? " finding" : " findings"),
      "\n");
  return out;
}

std::string report_json(const DoctorReport& report) {
  nlohmann::json ranks = nlohmann::json::array();
  for (size_t r = 0; r < report.examined.ranks.size(); ++r) {
    const RankInfo& info = report.examined.ranks[r];
    ranks.push_back({{"world_rank", info.world_rank},
                     {"tp_rank", report.topology.tp_rank(info.world_rank)},
                     {"cp_rank", report.topology.cp_rank(info.world_rank)},
                     {"host", info.host},
                     {"pid", info.pid},
                     {"cpu_isa", info.cpu_isa},
                     {"threads", info.threads},
                     {"figures", report.examined.examinations[r].figures},
                     {"facts", report.examined.examinations[r].facts}});
  }
  const nlohmann::json out = {{"build", kBuild},
                              {"tp", report.topology.tp},
                              {"cp", report.topology.cp},
                              {"healthy", report.diagnosis.findings.empty()},
                              {"ranks", ranks},
                              {"findings", findings_json(report.diagnosis.findings)},
                              {"remarks", findings_json(report.diagnosis.remarks)}};
  return out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace annulus::server
