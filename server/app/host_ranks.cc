// SPDX-License-Identifier: Apache-2.0
#include "server/app/host_ranks.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/app/local_workers.h"
#include "server/app/signals.h"

namespace annulus::server {

int run_host_ranks(const HostRanks& host) {
  hold_ending_signals();
  LocalWorkers::Options options;
  options.first_rank = host.first_rank;
  options.may_end = true;
  for (int32_t i = 0; i < host.ranks; ++i) {
    LocalWorkers::Child child;
    child.arguments = host.arguments;
    child.arguments.push_back("--rank");
    child.arguments.push_back(absl::StrCat(host.first_rank + i));
    options.children.push_back(std::move(child));
  }
  LocalWorkers ranks(std::move(options));
  ranks.start();
  for (bool asked = false; !ranks.over();) {
    if (signalled(std::chrono::milliseconds(50))) {
      if (std::exchange(asked, true)) break;
      ranks.ask_to_end();
    }
    if (const std::string why = ranks.gave_up(); !why.empty()) {
      spdlog::error("{}", why);
      return 2;
    }
  }
  return ranks.exit_code();
}

}  // namespace annulus::server
