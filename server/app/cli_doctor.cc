// SPDX-License-Identifier: Apache-2.0
// Flags of `annulus doctor`.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/app/cli_commands.h"
#include "server/app/doctor.h"
#include "server/app/worker_commands.h"
#include "server/one_line.h"

namespace annulus::server {
namespace {

constexpr const char* kExamples = R"(Examples:
  annulus doctor --cp 2                            two ranks of this machine, as `annulus serve --cp 2` places them
  annulus doctor --tp 8 --cp 4 --workers external --control-listen 0.0.0.0 --control-port 50052
                                                   prints the commands that start the ranks elsewhere
  ANNULUS_MODE=doctor ANNULUS_TP=8 ANNULUS_CP=4 deploy/slurm/serve.sbatch     the same in a Slurm job
  annulus doctor --cp 4 --json report.json         every round of every figure, for scripts
Measures, per rank and while all ranks work: GEMM, reading and copying memory; per hop to the next rank of ring and TP
group: bandwidth, latency, and what it really goes over. Named is what is worse than the median of the ranks by more than
15 % even in the best of its rounds; of two ranks the worse one, from about a quarter behind the other. And: more
threads than cores, CPU quotas, heat, TCP within a machine, versions that differ.
Exit code 0: healthy; 1: findings, or a rank that did not report; 2: a wrong flag.)";

int refuse(absl::string_view line) {
  std::fprintf(stderr, "annulus doctor: %s\n", one_line({line.data(), line.size()}).c_str());
  return 2;
}

struct DoctorFlags {
  DoctorConfig config;
  std::string cpu_isa = "auto", workers = "local";
};

int doctor(DoctorFlags& flags) {
  ServeConfig& ranks = flags.config.ranks;
  if (!set_up_logging("doctor", ranks.log_level)) {
    return refuse(absl::StrCat("no log level \"", ranks.log_level,
                               "\"; there are trace, debug, info, warn, error and off"));
  }
  const auto isa = kernels::parse_cpu_isa(flags.cpu_isa);
  if (!isa.ok()) return refuse(isa.status().message());
  ranks.isa = std::min(*isa, kernels::detect_cpu_isa());
  ranks.local_workers = flags.workers == "local";
  if (const auto able = prepare_ranks(ranks); !able.ok()) return refuse(able.message());
  return run_doctor(flags.config);
}

}  // namespace

void add_doctor(CLI::App& app, Command& run) {
  auto flags = std::make_shared<DoctorFlags>();
  ServeConfig& ranks = flags->config.ranks;
  ranks.log_level = "warn";
  CLI::App* sub =
      app.add_subcommand("doctor", "Measures hosts and links of all ranks, names what is slow");
  sub->footer(kExamples);
  const auto option = [sub](const char* name, auto& value, const char* help) {
    return sub->add_option(name, value, help)->capture_default_str();
  };
  option("--tp", ranks.topology.tp, "tensor-parallel size")->check(CLI::Range(1, 1024));
  option("--cp", ranks.topology.cp, "context-parallel size")->check(CLI::Range(1, 1024));
  option("--device", ranks.device, "what a rank computes on: cpu, or cuda (one GPU a rank)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  option("--cpu-isa", flags->cpu_isa,
         "cap on instructions: auto, portable, avx2, avx512, avx512-bf16, amx");
  option("--threads", ranks.threads,
         "threads of each rank; 0: the cores that this host or container gives / ranks")
      ->check(CLI::Range(0, 4096));
  option("--workers", flags->workers,
         "local: started here; external: they attach, their commands are printed")
      ->check(CLI::IsMember({"local", "external"}));
  option("--control-listen", ranks.control_host, "address that workers attach to");
  option("--control-port", ranks.control_port, "its port; 0: any free one")
      ->check(CLI::Range(0, 65535));
  sub->add_option("--secret", ranks.secret, "what workers must know to attach; default: drawn")
      ->envname("ANNULUS_SECRET");
  option("--timeout", flags->config.timeout_s, "seconds for all ranks to attach")
      ->check(CLI::Range(1, 86400));
  option("--json", flags->config.json, "file that gets everything that was measured");
  option("--log-level", ranks.log_level, "trace, debug, info, warn, error, off");
  sub->callback([flags, &run] { run = [flags] { return doctor(*flags); }; });
}

}  // namespace annulus::server
