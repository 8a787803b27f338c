// SPDX-License-Identifier: Apache-2.0
// `annulus status`: ranks, epoch, KV and variants of a server.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_format.h"
#include "server/app/cli_answer.h"
#include "server/app/cli_commands.h"
#include "server/rpc/client.h"

namespace annulus::server {

namespace {

constexpr const char* kExamples = R"(Examples:
  annulus status
  annulus status --server head:50051 --json
Exit code 0: it serves; 1: it does not (yet).)";

struct StatusFlags {
  std::string server = "127.0.0.1:50051";
  bool json = false;
};

template <class Map>
nlohmann::json map_json(const Map& map) {
  nlohmann::json out = nlohmann::json::object();
  for (const auto& [key, value] : map) out[key] = value;
  return out;
}

nlohmann::json spent_json(const v1::Spent& spent) {
  return {{"steps", spent.steps_us()},           {"attention", spent.attention_us()},
          {"sendrecv", spent.sendrecv_us()},     {"all_to_all", spent.all_to_all_us()},
          {"all_gather", spent.all_gather_us()}, {"phases", map_json(spent.phases_us())},
          {"waited", spent.waited_us()}};
}

nlohmann::json recent_json(const v1::Recent& recent) {
  return {{"compute_us", recent.compute_us()},
          {"ring_us", recent.ring_us()},
          {"other_us", recent.other_us()},
          {"excess", recent.excess()},
          {"straggles", recent.straggles()}};
}

double plans_ahead_share(const v1::GetClusterResponse& cluster) {
  return cluster.decode_steps() > 0 ? static_cast<double>(cluster.plans_ahead()) /
                                          static_cast<double>(cluster.decode_steps())
                                    : 0;
}

void print_json(const v1::GetModelResponse& model, const v1::GetClusterResponse& cluster) {
  nlohmann::json ranks = nlohmann::json::array();
  for (const v1::Rank& rank : cluster.ranks()) {
    ranks.push_back({{"world_rank", rank.world_rank()},
                     {"tp_rank", rank.tp_rank()},
                     {"cp_rank", rank.cp_rank()},
                     {"host", rank.host()},
                     {"pid", rank.pid()},
                     {"cpu_isa", rank.cpu_isa()},
                     {"threads", rank.threads()},
                     {"weight_bytes", rank.weight_bytes()},
                     {"load_s", rank.load_s()},
                     {"weights_from", rank.has_weights_from() ? rank.weights_from() : -1},
                     {"kv_rows", rank.kv_rows()},
                     {"kv_bytes", rank.kv_bytes()},
                     {"resident_bytes", rank.resident_bytes()},
                     {"workspace_peak_bytes", rank.workspace_peak_bytes()},
                     {"step_us", rank.step_us()},
                     {"idle_us", rank.idle_us()},
                     {"spent_us", spent_json(rank.spent())},
                     {"recent", recent_json(rank.recent())}});
  }
  const nlohmann::json out = {{"serving", cluster.serving()},
                              {"why_not", cluster.why_not()},
                              {"epoch", cluster.epoch()},
                              {"tp", cluster.tp()},
                              {"cp", cluster.cp()},
                              {"kv_capacity_rows", cluster.kv_capacity_rows()},
                              {"ranks", ranks},
                              {"steps_by_variant", map_json(cluster.steps_by_variant())},
                              {"steps_total", cluster.steps_total()},
                              {"decode_steps", cluster.decode_steps()},
                              {"plans_ahead", cluster.plans_ahead()},
                              {"plans_ahead_share", plans_ahead_share(cluster)},
                              {"profile", map_json(cluster.profile())},
                              {"profile_source", cluster.profile_source()},
                              {"requests_running", cluster.requests_running()},
                              {"requests_waiting", cluster.requests_waiting()},
                              {"sessions", cluster.sessions()},
                              {"model", model.name()},
                              {"precision", model.precision()},
                              {"trained_context", model.trained_context()},
                              {"served_context", model.served_context()}};
  std::printf("%s\n", out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

// Where the ranks' time went lately, and who holds the others up.
void print_recent(const v1::GetClusterResponse& cluster) {
  const bool any = std::any_of(cluster.ranks().begin(), cluster.ranks().end(),
                               [](const v1::Rank& r) { return r.recent().compute_us() > 0; });
  if (!any) return;
  absl::PrintF("%12s %4s %12s %13s %14s %10s\n", "a step, us:", "rank", "computing", "ring waits",
               "other waits", "to median");
  for (const v1::Rank& rank : cluster.ranks()) {
    const v1::Recent& recent = rank.recent();
    absl::PrintF("%12s %4d %12.0f %13.0f %14.0f %+8.0f %%%s\n", "lately", rank.world_rank(),
                 recent.compute_us(), recent.ring_us(), recent.other_us(), 100 * recent.excess(),
                 recent.straggles() ? "  STRAGGLER: all wait for it" : "");
  }
}

void print_text(const v1::GetModelResponse& model, const v1::GetClusterResponse& cluster) {
  const auto mb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  absl::PrintF("%s, precision %s, context %d (trained %d)\n", model.name(), model.precision(),
               model.served_context(), model.trained_context());
  if (cluster.serving()) {
    absl::PrintF("serving, epoch %d, tp %d x cp %d\n", cluster.epoch(), cluster.tp(), cluster.cp());
  } else {
    absl::PrintF("NOT serving: %s\n", cluster.why_not());
  }
  absl::PrintF("%d running, %d waiting, %d sessions\n", cluster.requests_running(),
               cluster.requests_waiting(), cluster.sessions());
  if (cluster.ranks_size() > 0) {
    absl::PrintF("%4s %3s %3s %8s  %-12s %7s %10s %18s %9s %9s %9s %8s\n", "rank", "tp", "cp",
                 "pid", "isa", "threads", "weights MB", "KV tokens", "KV MB", "memory MB",
                 "step ms", "idle us");
  }
  for (const v1::Rank& rank : cluster.ranks()) {
    absl::PrintF("%4d %3d %3d %8d  %-12s %7d %10.1f %18s %9.1f %9.1f %9.2f %8.0f  %s\n",
                 rank.world_rank(), rank.tp_rank(), rank.cp_rank(), rank.pid(), rank.cpu_isa(),
                 rank.threads(), mb(rank.weight_bytes()),
                 absl::StrFormat("%d/%d", rank.kv_rows(), cluster.kv_capacity_rows()),
                 mb(rank.kv_bytes()), mb(rank.resident_bytes()), rank.step_us() / 1000,
                 rank.idle_us(), rank.host());
  }
  print_recent(cluster);
  absl::PrintF("steps: %d (%s)\n", cluster.steps_total(), join_counts(cluster.steps_by_variant()));
  absl::PrintF(
      "decode steps whose successor was at the ranks before they ended: %d of %d (%.0f %%)\n",
      cluster.plans_ahead(), cluster.decode_steps(), 100 * plans_ahead_share(cluster));
  const std::map<std::string, double> profile(cluster.profile().begin(), cluster.profile().end());
  if (!profile.empty()) absl::PrintF("machine profile: %s\n", cluster.profile_source());
  for (const auto& [field, value] : profile) absl::PrintF("  %-22s %.4g\n", field, value);
}

int show_status(const StatusFlags& flags) {
  InferenceClient client(flags.server);
  const auto model = client.model();
  if (!model.ok()) return report("status", model.status());
  const auto cluster = client.cluster();
  if (!cluster.ok()) return report("status", cluster.status());
  if (flags.json) {
    print_json(*model, *cluster);
  } else {
    print_text(*model, *cluster);
  }
  return cluster->serving() ? 0 : 1;
}

}  // namespace

void add_status(CLI::App& app, Command& run) {
  auto flags = std::make_shared<StatusFlags>();
  CLI::App* sub = app.add_subcommand("status", "Shows ranks, epoch, KV use and chosen variants");
  sub->footer(kExamples);
  sub->add_option("--server", flags->server, "HOST:PORT")
      ->envname("ANNULUS_SERVER")
      ->capture_default_str();
  sub->add_flag("--json", flags->json, "for scripts");
  sub->callback([flags, &run] { run = [flags] { return show_status(*flags); }; });
}

}  // namespace annulus::server
