// SPDX-License-Identifier: Apache-2.0
// What Linux says about this process's host while something is measured: cores, NUMA nodes, clocks,
// and what took the cores away. Begins with construction; facts() are those of the time since
// (names: server/examination.h, fact). Cores are those that the thread may use at construction: a
// queue pins it to one of them later. What cannot be read is not there: virtual machines show no
// governor, containers no cgroup of their parents. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace annulus::server {

class HostFacts {
 public:
  HostFacts();
  // Clocks as they are now; the highest seen is told.
  void look();
  std::map<std::string, std::string> facts() const;

 private:
  struct Counters {
    std::chrono::steady_clock::time_point at;
    double waited_us = 0, ran_us = 0;       // of this process's threads: for a core, on one
    double throttled_us = -1;               // by the quota of the cgroup or one above; -1: unknown
    double steal_ticks = 0, all_ticks = 0;  // of its cores
    int64_t heat = -1;                      // events; -1: unknown
  };
  Counters count() const;

  const std::vector<int> cores_;  // ascending
  const Counters begun_;
  double mhz_ = 0;
};

// "key value" lines, as of cgroup's cpu.stat; -1: not there.
int64_t value_in(std::string_view text, std::string_view key);

}  // namespace annulus::server
