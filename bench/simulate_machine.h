// SPDX-License-Identifier: Apache-2.0
// A machine for annulus-bench simulate: rates and latencies of one system, each with where it comes
// from. Read from a JSON file, {"name": ..., "about": ..., "constants": {KEY: {"value": number,
// "source": text}}}: every key of kConstants exactly once and no other. Built in: gtt, gti,
// h100-ndr, zen5 (bench/machines). PURE. Errors: InvalidArgument, one line that names the file and
// the key.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::bench {

struct Machine {
  std::string name, about;
  // A rank is a GPU, or a core with its share of memory.
  double gpus_per_node = 0;
  double memory_gb = 0;  // of one rank, for weights, KV and workspace

  // Ops: max(work / rate, bytes / bandwidth) + op_us, + op_launch_us where the host launches each
  // op (decode steps do not where graph_decode is 1).
  double attend_tflops = 0;  // causal pairs count once
  double attend_us = 0, kv_read_gb_s = 0;
  double gemm_16bit_tflops = 0, gemm_8bit_tflops = 0, weight_read_gb_s = 0;
  double rows_gb_s = 0;  // norms, sums, merges
  double op_us = 0, op_launch_us = 0, graph_decode = 0;

  // Transfers: a hop holds up the queue for hop_us (+ hop_launch_us) and is then in flight for
  // latency + bytes / bandwidth, of which the share `overlap` goes on beside the queue.
  double local_gb_s = 0, local_us = 0;                 // inside a node
  double net_gb_s = 0, net_us = 0, nics_per_node = 0;  // between nodes, one NIC
  double hop_us = 0, hop_launch_us = 0, overlap = 0;
  // All-to-all and all-gather over the CP group.
  double collective_gb_s = 0, collective_us = 0, collective_launch_us = 0, collective_peer_us = 0;
  // Sums over the TP group: 2 (n - 1) / n of the bytes.
  double all_reduce_gb_s = 0, all_reduce_us = 0;

  // What the simulated system sends; this engine: 4 and 4.
  double activation_bytes = 0, partial_bytes = 0;

  std::map<std::string, std::string> source;  // by key
};

struct Constant {
  const char* key;
  double Machine::*value;
  double least;
};
std::span<const Constant> machine_constants();

absl::StatusOr<Machine> parse_machine(std::string_view json, const std::string& file);
// A built-in name, or the path of a file.
absl::StatusOr<Machine> load_machine(const std::string& name_or_path);
std::vector<std::string> built_in_machines();

// name -> JSON, made by the build from bench/machines.
const std::map<std::string, std::string>& machine_files();

}  // namespace annulus::bench
