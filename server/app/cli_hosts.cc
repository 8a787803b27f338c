// SPDX-License-Identifier: Apache-2.0
// `annulus hosts`: a host list of Slurm's, one name a line.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "server/app/cli_commands.h"
#include "server/app/host_list.h"
#include "server/one_line.h"

namespace annulus::server {

namespace {

constexpr const char* kExamples = R"(Examples:
  annulus hosts 'node[1-3,07-10],gpu-a'      node1 node2 node3 node07 ... gpu-a, one a line
  annulus hosts --first                      the first node of the Slurm job this runs in
It does what `scontrol show hostnames` does, where there is none: in a container, for example.)";

struct HostsFlags {
  std::string list;
  bool first = false;
};

int print_hosts(const HostsFlags& flags) {
  const auto hosts = expand_hosts(flags.list);
  if (!hosts.ok()) {
    const absl::string_view why = hosts.status().message();
    std::fprintf(stderr, "annulus hosts: %s\n", one_line({why.data(), why.size()}).c_str());
    return 2;
  }
  for (const std::string& host : *hosts) {
    std::printf("%s\n", host.c_str());
    if (flags.first) break;
  }
  return 0;
}

}  // namespace

void add_hosts(CLI::App& app, Command& run) {
  auto flags = std::make_shared<HostsFlags>();
  CLI::App* sub = app.add_subcommand("hosts", "Expands a host list of Slurm's");
  sub->footer(kExamples);
  sub->add_option("list", flags->list, "the list; default: the nodes of this Slurm job")
      ->envname("SLURM_JOB_NODELIST")
      ->required();
  sub->add_flag("--first", flags->first, "only the first name");
  sub->callback([flags, &run] { run = [flags] { return print_hosts(*flags); }; });
}

}  // namespace annulus::server
