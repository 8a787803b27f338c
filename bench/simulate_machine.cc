// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_machine.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace annulus::bench {
namespace {

using Json = nlohmann::json;

constexpr double kPositive = 1e-9;

constexpr Constant kConstants[] = {
    {"gpus_per_node", &Machine::gpus_per_node, 1},
    {"memory_gb", &Machine::memory_gb, kPositive},
    {"attend_tflops", &Machine::attend_tflops, kPositive},
    {"attend_us", &Machine::attend_us, 0},
    {"kv_read_gb_s", &Machine::kv_read_gb_s, kPositive},
    {"gemm_16bit_tflops", &Machine::gemm_16bit_tflops, kPositive},
    {"gemm_8bit_tflops", &Machine::gemm_8bit_tflops, kPositive},
    {"weight_read_gb_s", &Machine::weight_read_gb_s, kPositive},
    {"rows_gb_s", &Machine::rows_gb_s, kPositive},
    {"op_us", &Machine::op_us, 0},
    {"op_launch_us", &Machine::op_launch_us, 0},
    {"graph_decode", &Machine::graph_decode, 0},
    {"local_gb_s", &Machine::local_gb_s, kPositive},
    {"local_us", &Machine::local_us, 0},
    {"net_gb_s", &Machine::net_gb_s, kPositive},
    {"net_us", &Machine::net_us, 0},
    {"nics_per_node", &Machine::nics_per_node, 1},
    {"hop_us", &Machine::hop_us, 0},
    {"hop_launch_us", &Machine::hop_launch_us, 0},
    {"overlap", &Machine::overlap, 0},
    {"collective_gb_s", &Machine::collective_gb_s, kPositive},
    {"collective_us", &Machine::collective_us, 0},
    {"collective_launch_us", &Machine::collective_launch_us, 0},
    {"collective_peer_us", &Machine::collective_peer_us, 0},
    {"all_reduce_gb_s", &Machine::all_reduce_gb_s, kPositive},
    {"all_reduce_us", &Machine::all_reduce_us, 0},
    {"activation_bytes", &Machine::activation_bytes, 1},
    {"partial_bytes", &Machine::partial_bytes, 1},
};

}  // namespace

std::span<const Constant> machine_constants() {
  return kConstants;
}

absl::StatusOr<Machine> parse_machine(std::string_view text, const std::string& file) {
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", parts...));
  };
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded() || !json.is_object()) return bad("not a JSON object");
  for (const auto& [key, value] : json.items()) {
    if (key != "name" && key != "about" && key != "constants") {
      return bad("unknown key \"", key, "\"; a machine has name, about and constants");
    }
  }
  Machine machine;
  for (const auto& [key, member] :
       {std::pair("name", &Machine::name), std::pair("about", &Machine::about)}) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_string()) return bad("\"", key, "\" must be a text");
    machine.*member = found->get<std::string>();
  }
  const auto constants = json.find("constants");
  if (constants == json.end() || !constants->is_object()) {
    return bad("\"constants\" must be an object");
  }
  for (const auto& item : constants->items()) {
    const std::string& key = item.key();
    const Json& entry = item.value();
    const auto known = [&](const Constant& c) { return key == c.key; };
    const auto* const c = std::find_if(std::begin(kConstants), std::end(kConstants), known);
    if (c == std::end(kConstants)) {
      return bad("unknown key \"", key, "\"; constants are ",
                 absl::StrJoin(kConstants, ", ", [](std::string* out, const Constant& one) {
                   absl::StrAppend(out, one.key);
                 }));
    }
    const bool whole = entry.is_object() && entry.size() == 2 && entry.contains("value") &&
                       entry["value"].is_number() && entry.contains("source") &&
                       entry["source"].is_string() && !entry["source"].get<std::string>().empty();
    if (!whole) return bad("\"", key, "\" must be {\"value\": number, \"source\": text}");
    const double value = entry["value"].get<double>();
    if (!std::isfinite(value) || value < c->least) {
      return bad("\"", key, "\" is ", value, ", must be ",
                 c->least == kPositive ? "above 0" : absl::StrCat("at least ", c->least));
    }
    machine.*(c->value) = value;
    machine.source[key] = entry["source"].get<std::string>();
  }
  for (const Constant& c : kConstants) {
    if (!machine.source.contains(c.key)) return bad("\"", c.key, "\" is missing");
  }
  for (const auto& [key, value] :
       {std::pair("overlap", machine.overlap), std::pair("graph_decode", machine.graph_decode)}) {
    if (value > 1) return bad("\"", key, "\" is ", value, ", must be at most 1");
  }
  for (const auto& [key, value] : {std::pair("gpus_per_node", machine.gpus_per_node),
                                   std::pair("nics_per_node", machine.nics_per_node)}) {
    if (value != std::floor(value) || value > 4096) {
      return bad("\"", key, "\" is ", value, ", must be a whole number up to 4096");
    }
  }
  return machine;
}

absl::StatusOr<Machine> load_machine(const std::string& name_or_path) {
  if (const auto found = machine_files().find(name_or_path); found != machine_files().end()) {
    return parse_machine(found->second, found->first);
  }
  std::ifstream in(name_or_path, std::ios::binary);
  if (!in) {
    return absl::InvalidArgumentError(absl::StrCat(name_or_path,
                                                   ": no such file and no built-in machine (",
                                                   absl::StrJoin(built_in_machines(), ", "), ")"));
  }
  return parse_machine(std::string{std::istreambuf_iterator<char>(in), {}}, name_or_path);
}

std::vector<std::string> built_in_machines() {
  std::vector<std::string> names;
  for (const auto& [name, json] : machine_files()) names.push_back(name);
  return names;
}

}  // namespace annulus::bench
