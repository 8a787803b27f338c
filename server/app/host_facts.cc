// SPDX-License-Identifier: Apache-2.0
#include "server/app/host_facts.h"

#include <sys/utsname.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/app/cores.h"
#include "server/examination.h"

namespace annulus::server {
namespace {

namespace fs = std::filesystem;

std::string read_text(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string read_line(const std::string& path) {
  return std::string(absl::StripAsciiWhitespace(read_text(path)));
}

std::string cpu_folder(int core) {
  return absl::StrCat("/sys/devices/system/cpu/cpu", core, "/");
}

// "processor", "cpu MHz" and "model name" of /proc/cpuinfo, of these cores.
struct CpuInfo {
  double mhz = 0;  // mean; 0: not told
  std::string model;
};
CpuInfo cpu_info(const std::vector<int>& cores) {
  CpuInfo out;
  double sum = 0;
  int count = 0, core = -1;
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const absl::string_view key =
        absl::StripAsciiWhitespace(absl::string_view(line).substr(0, colon));
    const absl::string_view value =
        absl::StripAsciiWhitespace(absl::string_view(line).substr(colon + 1));
    double mhz = 0;
    if (key == "processor") (void)absl::SimpleAtoi(value, &core);
    if (key == "model name") out.model = std::string(value);
    if (key == "cpu MHz" && absl::SimpleAtod(value, &mhz) &&
        std::binary_search(cores.begin(), cores.end(), core)) {
      sum += mhz;
      ++count;
    }
  }
  if (count > 0) out.mhz = sum / count;
  return out;
}

std::string governors(const std::vector<int>& cores) {
  std::set<std::string> found;
  for (const int core : cores) {
    const std::string governor = read_line(cpu_folder(core) + "cpufreq/scaling_governor");
    if (!governor.empty()) found.insert(governor);
  }
  std::string out;
  for (const std::string& governor : found)
    absl::StrAppend(&out, out.empty() ? "" : ", ", governor);
  return out;
}

std::string numa_nodes(const std::vector<int>& cores) {
  std::vector<int> nodes;
  for (int node = 0;; ++node) {
    const std::string path = absl::StrCat("/sys/devices/system/node/node", node, "/cpulist");
    if (!fs::exists(path)) break;
    const std::vector<int> of_node = parse_cores(read_line(path));
    const bool any = std::any_of(cores.begin(), cores.end(), [&](int core) {
      return std::binary_search(of_node.begin(), of_node.end(), core);
    });
    if (any) nodes.push_back(node);
  }
  return format_cores(nodes);
}

}  // namespace

int64_t value_in(std::string_view text, std::string_view key) {
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    int64_t value = 0;
    if (words.size() == 2 && words[0] == absl::string_view(key.data(), key.size()) &&
        absl::SimpleAtoi(words[1], &value)) {
      return value;
    }
  }
  return -1;
}

HostFacts::HostFacts() : cores_(allowed_cores()), begun_(count()) {}

HostFacts::Counters HostFacts::count() const {
  Counters out;
  out.at = std::chrono::steady_clock::now();
  std::error_code error;
  for (const auto& thread : fs::directory_iterator("/proc/self/task", error)) {
    std::istringstream text(read_text(thread.path() / "schedstat"));  // ns on a core, ns waiting
    double ran = 0, waited = 0;
    if (text >> ran >> waited) {
      out.ran_us += ran * 1e-3;
      out.waited_us += waited * 1e-3;
    }
  }
  for (const std::string& cgroup : cgroup_folders()) {
    const auto us =
        static_cast<double>(value_in(read_text(cgroup + "/cpu.stat"), "throttled_usec"));
    out.throttled_us = std::max(out.throttled_us, us);
  }
  std::set<std::string> names;
  for (const int core : cores_) {
    names.insert(absl::StrCat("cpu", core));
    int64_t events = 0;
    if (absl::SimpleAtoi(read_line(cpu_folder(core) + "thermal_throttle/core_throttle_count"),
                         &events)) {
      out.heat = std::max<int64_t>(out.heat, 0) + events;
    }
  }
  std::istringstream stat(
      read_text("/proc/stat"));  // user nice system idle iowait irq softirq steal
  for (std::string line; std::getline(stat, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (!names.contains(name)) continue;
    double ticks = 0;
    for (int field = 0; field < 8 && words >> ticks; ++field) {
      out.all_ticks += ticks;
      if (field == 7) out.steal_ticks += ticks;
    }
  }
  return out;
}

void HostFacts::look() {
  mhz_ = std::max(mhz_, cpu_info(cores_).mhz);
}

std::map<std::string, std::string> HostFacts::facts() const {
  std::map<std::string, std::string> out;
  const auto put = [&](const char* name, const std::string& value) {
    if (!value.empty()) out[name] = value;
  };
  put(fact::kMachine, read_line("/proc/sys/kernel/random/boot_id"));
  put(fact::kCores, format_cores(cores_));
  put(fact::kNumaNodes, numa_nodes(cores_));
  put(fact::kCpu, cpu_info(cores_).model);
  if (mhz_ > 0) put(fact::kMhz, absl::StrCat(static_cast<int64_t>(mhz_)));
  put(fact::kGovernor, governors(cores_));
  utsname system{};
  if (uname(&system) == 0) put(fact::kKernel, absl::StrCat(system.sysname, " ", system.release));

  const Counters now = count();
  const double us = std::chrono::duration<double, std::micro>(now.at - begun_.at).count();
  const auto share = [&](const char* name, double part, double whole) {
    if (whole > 0 && part >= 0) put(name, absl::StrCat(part / whole));
  };
  const double waited = now.waited_us - begun_.waited_us;
  share(fact::kWaitShare, waited, waited + now.ran_us - begun_.ran_us);
  if (now.throttled_us >= 0 && begun_.throttled_us >= 0)
    share(fact::kQuotaShare, now.throttled_us - begun_.throttled_us, us);
  share(fact::kStealShare, now.steal_ticks - begun_.steal_ticks, now.all_ticks - begun_.all_ticks);
  if (now.heat >= 0 && begun_.heat >= 0) put(fact::kHeat, absl::StrCat(now.heat - begun_.heat));
  return out;
}

}  // namespace annulus::server
