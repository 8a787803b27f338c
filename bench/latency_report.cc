// SPDX-License-Identifier: Apache-2.0
#include "bench/latency_report.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/cleanup/cleanup.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/statistics.h"

namespace annulus::bench {
namespace {

namespace fs = std::filesystem;

std::string text(const nlohmann::json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string list(const nlohmann::json& values) {
  return absl::StrJoin(values, ",", [](std::string* out, const nlohmann::json& value) {
    absl::StrAppend(out, text(value));
  });
}

// Percent of the steps' time, "-" where the ranks did not tell.
std::string percent(const Breakdown& breakdown, std::initializer_list<const char*> parts) {
  const auto steps = breakdown.find("steps");
  if (steps == breakdown.end() || steps->second <= 0) return "-";
  double us = 0;
  for (const char* part : parts) {
    const auto it = breakdown.find(part);
    if (it != breakdown.end()) us += it->second;
  }
  char out[16];
  std::snprintf(out, sizeof out, "%.1f", 100 * us / steps->second);
  return out;
}

// Exit status of a command; its output is ours, or nobody's.
int run_command(const std::vector<std::string>& command, bool quiet) {
  std::vector<std::string> copy = command;
  std::vector<char*> argv;
  argv.reserve(copy.size() + 1);
  for (std::string& argument : copy) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::fflush(stdout);
  const pid_t pid = fork();
  if (pid == 0) {
    const int nobody = open("/dev/null", O_WRONLY);
    if (quiet && nobody >= 0) {
      dup2(nobody, 1);
      dup2(nobody, 2);
    }
    execvp(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::string cache_folder() {
  if (const char* xdg = std::getenv("XDG_CACHE_HOME")) return xdg;
  const char* home = std::getenv("HOME");
  return home == nullptr ? "" : absl::StrCat(home, "/.cache");
}

}  // namespace

void print_head(const LatencyRun& run) {
  const nlohmann::json& p = run.parameters;
  std::printf(
      "# annulus-bench latency: %s, precision %s; lengths %s, miss %s, variants %s\n"
      "# warm-up %s, repetitions %s, then %s gaps between tokens; medians and 95th percentiles in "
      "ms, seen by the client\n",
      run.model.c_str(), run.precision.c_str(), list(p.value("lengths", nlohmann::json())).c_str(),
      list(p.value("misses", nlohmann::json())).c_str(),
      list(p.value("variants", nlohmann::json())).c_str(),
      text(p.value("warmup", nlohmann::json())).c_str(),
      text(p.value("repetitions", nlohmann::json())).c_str(),
      text(p.value("output", nlohmann::json())).c_str());
  std::printf(
      "# attn, comm, gemm: %% of the ranks' time until the first token; comm is exposed "
      "communication (gemm: served with --profile)\n");
}

void print_server(const nlohmann::json& server) {
  std::printf("# server %s: tp %s x cp %s, context %s\n", text(server.at("address")).c_str(),
              server.at("tp").dump().c_str(), server.at("cp").dump().c_str(),
              server.at("context").dump().c_str());
  for (const nlohmann::json& rank : server.at("ranks")) {
    std::printf("#   rank %2s (tp %s, cp %s)  pid %7s on %s, %s, %s threads\n",
                rank.at("world_rank").dump().c_str(), rank.at("tp_rank").dump().c_str(),
                rank.at("cp_rank").dump().c_str(), rank.at("pid").dump().c_str(),
                text(rank.at("host")).c_str(), text(rank.at("device")).c_str(),
                rank.at("threads").dump().c_str());
  }
}

void print_columns() {
  std::printf("#\n# %3s %3s %8s %6s %8s %-8s %-8s %9s %9s %9s %8s %8s %5s %5s %5s %8s  %s\n", "cp",
              "tp", "length", "miss%", "new", "variant", "chosen", "TTFT", "p95", "new/s", "TTIT",
              "p95", "attn%", "comm%", "gemm%", "worst", "check");
}

void print_row(const LatencyRow& row, double bound) {
  const double ttft = percentile(row.ttft_ms, 50);
  const Breakdown& spent = row.prefill_us;
  const Correctness& check = row.check;
  const std::string verdict =
      !check.ok()       ? absl::StrCat("WRONG x", check.wrong)
      : check.reference ? "reference"
                        : absl::StrCat("OK ", check.compared, check.parted ? ", tie" : "");
  std::printf(
      "  %3d %3d %8lld %6.4g %8lld %-8s %-8s %9.2f %9.2f %9.0f %8.2f %8.2f %5s %5s %5s %8.1e  %s\n",
      row.cp, row.tp, static_cast<long long>(row.length), 100 * row.miss,
      static_cast<long long>(row.fresh()), row.variant.c_str(), row.chosen.c_str(), ttft,
      percentile(row.ttft_ms, 95), ttft > 0 ? static_cast<double>(row.fresh()) * 1e3 / ttft : 0,
      percentile(row.ttit_ms, 50), percentile(row.ttit_ms, 95),
      percent(spent, {"attention"}).c_str(),
      percent(spent, {"sendrecv", "all_to_all", "all_gather", "other_wait"}).c_str(),
      spent.contains("gemm") ? percent(spent, {"gemm"}).c_str() : "-", check.worst,
      verdict.c_str());
  if (!check.ok()) {
    std::printf("#   ^ the answer is not the reference's (bound of a log-probability: %g)\n",
                bound);
  }
  std::fflush(stdout);
}

void print_verdict(const LatencyRun& run) {
  const int wrong = wrong_rows(run);
  std::printf(
      "# Wrong rows: %d of %zu %s\n# Worst difference of a log-probability: %.2g (bound %g)\n",
      wrong, run.rows.size(), wrong == 0 ? "OK" : "WRONG", worst_difference(run),
      logprob_bound(run.precision));
}

absl::Status write_file(const std::string& path, const std::string& content) {
  std::ofstream out(path, std::ios::binary);
  out << content;
  out.close();
  if (out) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
}

absl::Status check_writable(const std::string& path) {
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : ".";
  std::error_code ignored;
  if (path.empty() || (fs::is_directory(folder, ignored) && access(folder.c_str(), W_OK) == 0 &&
                       !fs::is_directory(path, ignored)))
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
}

absl::StatusOr<std::string> plotting_python(const std::string& wanted) {
  const std::string installed = cache_folder() + "/annulus/venv/bin/python";
  std::error_code ignored;
  const std::string python = !wanted.empty()                  ? wanted
                             : fs::exists(installed, ignored) ? installed
                                                              : "python3";
  if (run_command({python, "-c", "import matplotlib"}, /*quiet=*/true) == 0) return python;
  return absl::FailedPreconditionError(
      absl::StrCat("figures need matplotlib, which ", python,
                   " has not: deploy/install --tests brings it, --python names another"));
}

absl::Status plot(const std::string& python, const LatencyRun& run, const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("cannot make the folder ", folder));
  const fs::path data = fs::path(folder) / "latency.json";
  if (absl::Status s = write_file(data, to_json(run).dump()); !s.ok()) return s;
  const fs::path script = fs::read_symlink("/proc/self/exe").parent_path() / "latency_plot.py";
  if (!fs::exists(script, error)) {
    return absl::NotFoundError(absl::StrCat(script.string(), " is missing: build annulus-bench"));
  }
  if (run_command({python, script, data, folder}, /*quiet=*/false) == 0) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat("the figures failed; their data is in ", data.string()));
}

}  // namespace annulus::bench
