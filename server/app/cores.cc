// SPDX-License-Identifier: Apache-2.0
#include "server/app/cores.h"

#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace annulus::server {

std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return {0};
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(static_cast<size_t>(core), &set)) cores.push_back(core);
  }
  return cores;
}

std::vector<std::string> cgroup_folders() {
  std::vector<std::string> out;
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("0::")) continue;
    for (std::filesystem::path path = line.substr(3);; path = path.parent_path()) {
      out.push_back(absl::StrCat("/sys/fs/cgroup", path.string()));
      if (!path.has_relative_path()) break;
    }
  }
  return out;
}

double quota_of(std::string_view cpu_max) {
  const std::vector<absl::string_view> words = absl::StrSplit(
      absl::string_view(cpu_max.data(), cpu_max.size()), absl::ByAnyChar(" \n"), absl::SkipEmpty());
  double quota = 0, period = 0;
  const bool limited = words.size() == 2 && absl::SimpleAtod(words[0], &quota) &&
                       absl::SimpleAtod(words[1], &period) && quota > 0 && period > 0;
  return limited ? quota / period : std::numeric_limits<double>::infinity();
}

double cpu_quota() {
  const auto text = [](const std::string& path) {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  double least = std::numeric_limits<double>::infinity();
  for (const std::string& folder : cgroup_folders()) {
    least = std::min(least, quota_of(text(folder + "/cpu.max")));
  }
  // Version 1, as a container sees its own; -1: no quota.
  const std::string old = "/sys/fs/cgroup/cpu/cpu.cfs_";
  return std::min(least, quota_of(text(old + "quota_us") + " " + text(old + "period_us")));
}

int usable_cores() {
  const auto cores = static_cast<double>(allowed_cores().size());
  return std::max(1, static_cast<int>(std::min(cores, cpu_quota())));
}

int default_threads(int ranks, int cores) {
  return std::max(1, cores / std::max(1, ranks));
}

std::vector<std::vector<int>> cores_of_ranks(int ranks, int threads,
                                             const std::vector<int>& cores) {
  std::vector<std::vector<int>> out(static_cast<size_t>(ranks));
  if (int64_t{ranks} * threads > static_cast<int64_t>(cores.size())) return out;
  auto next = cores.begin();
  for (std::vector<int>& own : out) {
    own.assign(next, next + threads);
    next += threads;
  }
  return out;
}

}  // namespace annulus::server
