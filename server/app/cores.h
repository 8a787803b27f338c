// SPDX-License-Identifier: Apache-2.0
// The cores of this process, how many of them it gets, and how ranks share them. Any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace annulus::server {

// Cores this thread may run on, ascending.
std::vector<int> allowed_cores();

// The folders of this process's cgroup (version 2) and of those above it.
std::vector<std::string> cgroup_folders();

// Cores' worth of time that a cgroup's cpu.max allows ("QUOTA PERIOD", microseconds, or "max
// PERIOD"); infinity where it sets no limit.
double quota_of(std::string_view cpu_max);

// Of the cgroup and those above it, or of a container's under version 1; infinity where none sets a
// limit.
double cpu_quota();

// Threads that run at once: allowed_cores(), or fewer where a quota (a container's limit) gives
// less. Threads beyond it would be stopped for most of each period.
int usable_cores();

// cores / ranks, at least 1.
int default_threads(int ranks, int cores);

// The cores of each rank where every thread can have its own, else empty lists: not pinned.
std::vector<std::vector<int>> cores_of_ranks(int ranks, int threads, const std::vector<int>& cores);

}  // namespace annulus::server
