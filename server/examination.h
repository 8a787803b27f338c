// SPDX-License-Identifier: Apache-2.0
// What `annulus doctor` knows of the ranks, and what it makes of it. PURE; any thread. The rule:
//   - even the best of a rank's rounds must be worse than the median of the ranks' medians by more
//     than kOutlier (outliers.h says what that means for two ranks), and for latencies by
//     kLatency_us: what disturbs a rank slows it down, but seldom in every round;
//   - hops are compared with hops of the same kind: shared memory is not TCP's measure;
//   - beside it stand facts that no median shows, because they may hit all ranks alike: more
//   threads
//     than cores, a CPU quota, TCP between ranks of one machine, versions that differ.
// Whatever is better than the median is a remark: then the majority may be what is slow.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "parallel/topology.h"
#include "server/rank_link.h"

namespace annulus::server {

inline constexpr double kLatency_us = 5;         // less is noise of a wake-up, and no layer's time
inline constexpr double kThrottledShare = 0.01;  // of the time that was measured

// Facts a rank tells, where it can read them; numbers as text.
namespace fact {
inline constexpr const char* kMachine = "machine";       // equal for ranks that share cores
inline constexpr const char* kCores = "cores";           // those it may run on: "0-3,8"
inline constexpr const char* kNumaNodes = "numa_nodes";  // that those lie on: "0"
inline constexpr const char* kCpu = "cpu";               // model name
inline constexpr const char* kMhz = "mhz";               // mean of its cores, highest seen
inline constexpr const char* kGovernor = "governor";
inline constexpr const char* kKernel = "kernel";
inline constexpr const char* kUcx = "ucx";
inline constexpr const char* kNccl = "nccl";
inline constexpr const char* kDriver = "driver";             // of the GPU
inline constexpr const char* kQuotaShare = "quota_share";    // of the time, stopped by a CPU quota
inline constexpr const char* kWaitShare = "wait_share";      // of its threads' time, for a core
inline constexpr const char* kStealShare = "steal_share";    // of its cores, to the hypervisor
inline constexpr const char* kHeat = "thermal_throttles";    // events on its cores, meanwhile
inline constexpr const char* kForced = "forced_transports";  // --transports or UCX_TLS
inline constexpr const char* kCpTransport = "cp_transport";  // to the next rank of its ring
inline constexpr const char* kTpTransport = "tp_transport";
}  // namespace fact

struct RankExamination {
  std::map<std::string, std::vector<double>> figures;  // rounds, by parallel::Figure's name
  std::map<std::string, std::string> facts;
};

struct Finding {
  std::vector<int32_t> ranks;  // world ranks; of a hop the one that sends comes first
  std::string figure;          // of parallel::Figure or of fact
  std::string line;            // for people
};

struct Diagnosis {
  std::vector<Finding> findings;  // somebody should look at these
  std::vector<Finding> remarks;   // good to know
};

// examinations and ranks: by world rank.
Diagnosis diagnose(parallel::Topology topology, std::span<const RankInfo> ranks,
                   std::span<const RankExamination> examinations);

// "shared memory", "TCP", "RDMA" or "NCCL" out of a transport fact; else the fact itself.
std::string transport_kind(const std::string& transports);
// "0-3,8" and back; empty where it is no such list.
std::vector<int> parse_cores(const std::string& text);
std::string format_cores(std::span<const int> cores);

// The median of its rounds; NaN where it has none.
double figure_of(const RankExamination& examination, const std::string& figure);

}  // namespace annulus::server
