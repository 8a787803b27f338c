// SPDX-License-Identifier: Apache-2.0
#include "server/examination.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "parallel/examine.h"
#include "server/outliers.h"

namespace annulus::server {
namespace {

using parallel::Figure;
using parallel::Topology;

enum class Place : uint8_t { kDevice, kCp, kTp };
struct Kind {
  Figure figure;
  const char* title;
  const char* unit;
  Place place;
  bool more_is_better;
};
constexpr Kind kKinds[] = {
    {Figure::kGemm, "GEMM", "GFLOP/s", Place::kDevice, true},
    {Figure::kRead, "reading memory", "GB/s", Place::kDevice, true},
    {Figure::kCopy, "copying memory", "GB/s", Place::kDevice, true},
    {Figure::kCpBandwidth, "bandwidth of a CP hop", "GB/s", Place::kCp, true},
    {Figure::kCpLatency, "latency of a CP hop", "us", Place::kCp, false},
    {Figure::kTpBandwidth, "bandwidth of a TP hop", "GB/s", Place::kTp, true},
    {Figure::kTpLatency, "latency of a TP hop", "us", Place::kTp, false},
};
static_assert(std::size(kKinds) == parallel::kFigures);

std::string fact_of(const RankExamination& rank, const char* fact) {
  const auto it = rank.facts.find(fact);
  return it == rank.facts.end() ? "" : it->second;
}

double number_of(const RankExamination& rank, const char* fact) {
  double value = 0;
  return absl::SimpleAtod(fact_of(rank, fact), &value) && std::isfinite(value) ? value : 0;
}

class Doctor {
 public:
  Doctor(Topology topology, std::span<const RankInfo> ranks,
         std::span<const RankExamination> examinations)
      : topology_(topology), ranks_(ranks), examinations_(examinations) {}

  Diagnosis diagnose() {
    for (const Kind& kind : kKinds) compare(kind);
    for (const Place place : {Place::kCp, Place::kTp}) check_links(place);
    check_cores();
    check_quota_and_heat();
    for (const auto& [fact, what] :
         {std::pair(fact::kUcx, "UCX"), {fact::kNccl, "NCCL"}, {fact::kDriver, "the GPU driver"}}) {
      check_equal(what, fact, out_.findings,
                  [&, f = fact](size_t r) { return fact_of(examinations_[r], f); });
    }
    check_equal("what ranks compute on", "cpu_isa", out_.findings,
                [&](size_t r) { return ranks_[r].cpu_isa; });
    check_equal("threads a rank", "threads", out_.findings,
                [&](size_t r) { return absl::StrCat(ranks_[r].threads); });
    for (const auto& [fact, what] : {std::pair(fact::kKernel, "the kernel"),
                                     {fact::kCpu, "the CPU"},
                                     {fact::kGovernor, "the governor of clocks"}}) {
      check_equal(what, fact, out_.remarks,
                  [&, f = fact](size_t r) { return fact_of(examinations_[r], f); });
    }
    check_numa();
    return std::move(out_);
  }

 private:
  size_t size() const { return ranks_.size(); }
  std::string who(size_t r) const {
    return absl::StrCat("rank ", r, " (pid ", ranks_[r].pid, " on ", ranks_[r].host, ")");
  }
  size_t next_of(size_t r, Place place) const {
    const auto rank = static_cast<int32_t>(r);
    int32_t tp = topology_.tp_rank(rank), cp = topology_.cp_rank(rank);
    (place == Place::kCp ? cp : tp) += 1;
    return static_cast<size_t>(topology_.world_rank(tp % topology_.tp, cp % topology_.cp));
  }
  std::string transport(size_t r, Place place) const {
    const char* fact = place == Place::kCp ? fact::kCpTransport : fact::kTpTransport;
    return transport_kind(fact_of(examinations_[r], fact));
  }

  void compare(const Kind& kind) {
    std::map<std::string, std::vector<size_t>> peers;  // by kind of link
    for (size_t r = 0; r < size(); ++r) {
      if (std::isnan(figure_of(examinations_[r], parallel::name(kind.figure)))) continue;
      peers[kind.place == Place::kDevice ? "" : transport(r, kind.place)].push_back(r);
    }
    for (const auto& [link, members] : peers) {
      if (members.size() > 1) compare(kind, link, members);
    }
  }

  void compare(const Kind& kind, const std::string& link, const std::vector<size_t>& members) {
    const std::string figure = parallel::name(kind.figure);
    std::vector<double> medians;
    medians.reserve(members.size());
    for (const size_t r : members) medians.push_back(figure_of(examinations_[r], figure));
    const double usual = median(medians);
    if (usual <= 0) return;
    for (size_t i = 0; i < members.size(); ++i) {
      const size_t r = members[i];
      const std::vector<double>& rounds = examinations_[r].figures.at(figure);
      const auto [least, most] = std::minmax_element(rounds.begin(), rounds.end());
      const bool latency = !kind.more_is_better;
      const auto counts = [&](double value) {
        return !latency || std::abs(value - usual) >= kLatency_us;
      };
      const bool high = *least > usual * (1 + kOutlier) && counts(*least);
      const bool low = *most < usual * (1 - kOutlier) && counts(*most);
      if (!high && !low) continue;
      const bool worse = kind.more_is_better ? low : high;
      if (!worse && members.size() == 2) continue;  // of two, one is always above their median
      std::vector<int32_t> named = {static_cast<int32_t>(r)};
      std::string subject = who(r);
      if (kind.place != Place::kDevice) {
        const size_t next = next_of(r, kind.place);
        named.push_back(static_cast<int32_t>(next));
        subject = absl::StrCat(subject, " -> ", who(next), ", over ", link);
      }
      std::string line = absl::StrFormat("%s: %s is %.4g %s, %s the %.4g that is the median of %d",
                                         subject, kind.title, medians[i], kind.unit,
                                         distance(medians[i], usual), usual, members.size());
      if (worse && kind.place == Place::kDevice) line += reasons(r);
      (worse ? out_.findings : out_.remarks).push_back({std::move(named), figure, std::move(line)});
    }
  }

  static std::string distance(double value, double usual) {
    if (value > 2 * usual) return absl::StrFormat("%.1f times", value / usual);
    return absl::StrFormat("%.0f %% %s", 100 * std::abs(value / usual - 1),
                           value < usual ? "below" : "above");
  }

  // What may explain a slow device.
  std::string reasons(size_t r) const {
    std::string out;
    const auto share = [&](const char* fact, double least, const char* words) {
      const double value = number_of(examinations_[r], fact);
      if (value >= least)
        absl::StrAppendFormat(&out, "; %s %.0f %% of the time", words, 100 * value);
    };
    share(fact::kWaitShare, 0.1, "its threads waited for a core");
    share(fact::kQuotaShare, kThrottledShare, "a CPU quota stopped it");
    share(fact::kStealShare, 0.05, "the hypervisor took its cores");
    return out;
  }

  void check_links(Place place) {
    const bool exists = (place == Place::kCp ? topology_.cp : topology_.tp) > 1;
    for (size_t r = 0; exists && r < size(); ++r) {
      const size_t next = next_of(r, place);
      const RankExamination &one = examinations_[r], &other = examinations_[next];
      const std::string machine = fact_of(one, fact::kMachine), kind = transport(r, place);
      if (machine.empty() || machine != fact_of(other, fact::kMachine) || kind != "TCP") continue;
      const bool wanted = !fact_of(one, fact::kForced).empty();
      (wanted ? out_.remarks : out_.findings)
          .push_back({{static_cast<int32_t>(r), static_cast<int32_t>(next)},
                      place == Place::kCp ? fact::kCpTransport : fact::kTpTransport,
                      absl::StrCat(who(r), " -> ", who(next), ": TCP between ranks of one machine",
                                   wanted ? ", as was asked"
                                          : ": give their containers the same /dev/shm and IPC "
                                            "namespace")});
    }
  }

  // Ranks that are confined to a set of cores must not have more threads than it has cores.
  void check_cores() {
    std::set<std::pair<std::string, std::string>> seen;
    for (size_t r = 0; r < size(); ++r) {
      const std::string machine = fact_of(examinations_[r], fact::kMachine);
      const std::string text = fact_of(examinations_[r], fact::kCores);
      const std::vector<int> cores = parse_cores(text);
      if (machine.empty() || cores.empty() || !seen.insert({machine, text}).second) continue;
      std::vector<int32_t> confined;
      int64_t threads = 0;
      for (size_t other = 0; other < size(); ++other) {
        const std::vector<int> own = parse_cores(fact_of(examinations_[other], fact::kCores));
        if (fact_of(examinations_[other], fact::kMachine) != machine || own.empty()) continue;
        if (!std::includes(cores.begin(), cores.end(), own.begin(), own.end())) continue;
        confined.push_back(static_cast<int32_t>(other));
        threads += ranks_[other].threads;
      }
      if (threads <= std::ssize(cores)) continue;
      const std::string line = absl::StrCat(
          confined.size() == 1 ? "rank " : "ranks ", absl::StrJoin(confined, ", "), " on ",
          ranks_[r].host, ": ", threads, " threads on ", cores.size(),
          cores.size() == 1 ? " core (" : " cores (", text,
          "): fewer --threads, fewer ranks a host, or other cores (taskset, srun --cpus-per-task)");
      out_.findings.push_back({std::move(confined), fact::kCores, line});
    }
  }

  void check_quota_and_heat() {
    for (size_t r = 0; r < size(); ++r) {
      const double quota = number_of(examinations_[r], fact::kQuotaShare);
      if (quota >= kThrottledShare) {
        out_.findings.push_back(
            {{static_cast<int32_t>(r)},
             fact::kQuotaShare,
             absl::StrFormat(
                 "%s: a CPU quota stopped it %.0f %% of the time: raise the limit of its "
                 "container or cgroup (cpu.max)",
                 who(r), 100 * quota)});
      }
      const double events = number_of(examinations_[r], fact::kHeat);
      if (events <= 0) continue;
      out_.findings.push_back(
          {{static_cast<int32_t>(r)},
           fact::kHeat,
           absl::StrFormat("%s: its cores were slowed down %.0f times because they are hot", who(r),
                           events)});
    }
  }

  // Names the minority's ranks where a fact differs.
  template <class Fact>
  void check_equal(const char* what, const char* name, std::vector<Finding>& out,
                   const Fact& fact) {
    std::map<std::string, std::vector<int32_t>> by_value;
    for (size_t r = 0; r < size(); ++r) {
      if (const std::string value = fact(r); !value.empty()) {
        by_value[value].push_back(static_cast<int32_t>(r));
      }
    }
    if (by_value.size() < 2) return;
    const auto most = std::max_element(by_value.begin(), by_value.end(), [](auto& a, auto& b) {
      return a.second.size() < b.second.size();
    });
    std::vector<int32_t> others;
    std::vector<std::string> values;
    for (const auto& [value, members] : by_value) {
      values.push_back(absl::StrCat(value, " (rank ", absl::StrJoin(members, ", "), ")"));
      if (value != most->first) others.insert(others.end(), members.begin(), members.end());
    }
    std::sort(others.begin(), others.end());
    out.push_back({others, name, absl::StrCat(what, " differs: ", absl::StrJoin(values, "; "))});
  }

  void check_numa() {
    for (size_t r = 0; r < size(); ++r) {
      const std::string nodes = fact_of(examinations_[r], fact::kNumaNodes);
      if (parse_cores(nodes).size() < 2) continue;
      out_.remarks.push_back({{static_cast<int32_t>(r)},
                              fact::kNumaNodes,
                              absl::StrCat(who(r), ": its cores lie on NUMA nodes ", nodes,
                                           ": a rank a node reads its own memory (numactl, srun "
                                           "--cpu-bind)")});
    }
  }

  const Topology topology_;
  const std::span<const RankInfo> ranks_;
  const std::span<const RankExamination> examinations_;
  Diagnosis out_;
};

}  // namespace

double figure_of(const RankExamination& examination, const std::string& figure) {
  const auto it = examination.figures.find(figure);
  if (it == examination.figures.end() || it->second.empty()) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return median(it->second);
}

std::string transport_kind(const std::string& transports) {
  const std::vector<std::string> lanes = absl::StrSplit(transports, ", ");
  const auto any = [&](std::initializer_list<const char*> names) {
    return std::any_of(lanes.begin(), lanes.end(), [&](const std::string& lane) {
      return std::any_of(names.begin(), names.end(),
                         [&](const char* name) { return lane.starts_with(name); });
    });
  };
  if (any({"posix", "sysv", "xpmem", "cma", "knem"})) return "shared memory";
  if (any({"rc_", "dc_", "ud_"})) return "RDMA";
  if (any({"tcp"})) return "TCP";
  return transports;
}

std::vector<int> parse_cores(const std::string& text) {
  constexpr int kMost = 1 << 16;
  std::vector<int> cores;
  if (text.empty()) return cores;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<std::string> ends = absl::StrSplit(part, '-');
    int first = 0, last = 0;
    if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), &first) ||
        !absl::SimpleAtoi(ends.back(), &last) || first < 0 || last < first || last > kMost) {
      return {};
    }
    for (int core = first; core <= last; ++core) cores.push_back(core);
  }
  std::sort(cores.begin(), cores.end());
  cores.erase(std::unique(cores.begin(), cores.end()), cores.end());
  return cores;
}

std::string format_cores(std::span<const int> cores) {
  std::string out;
  for (size_t i = 0; i < cores.size();) {
    size_t end = i + 1;
    while (end < cores.size() && cores[end] == cores[end - 1] + 1) ++end;
    absl::StrAppend(&out, out.empty() ? "" : ",", cores[i]);
    if (end - i > 1) absl::StrAppend(&out, "-", cores[end - 1]);
    i = end;
  }
  return out;
}

Diagnosis diagnose(Topology topology, std::span<const RankInfo> ranks,
                   std::span<const RankExamination> examinations) {
  return Doctor(topology, ranks, examinations).diagnose();
}

}  // namespace annulus::server
