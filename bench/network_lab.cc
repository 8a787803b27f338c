// SPDX-License-Identifier: Apache-2.0
#include "bench/network_lab.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace annulus::bench {

std::string NetworkLab::host(int i) const {
  return absl::StrCat(prefix_, "h", i);
}

std::string NetworkLab::port(int i) const {
  return absl::StrCat(prefix_, "p", i);
}

absl::Status NetworkLab::shell(const std::string& command) const {
  if (std::system(absl::StrCat("{ ", command, "; } >/dev/null 2>&1").c_str()) == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("network namespaces need root, iproute2 and nftables; this failed: ", command));
}

absl::StatusOr<std::unique_ptr<NetworkLab>> NetworkLab::create(int hosts) {
  std::unique_ptr<NetworkLab> lab(new NetworkLab(absl::StrCat("an", getpid()), hosts));
  const std::string hub = lab->switch_namespace();
  std::string command =
      absl::StrCat("ip netns add ", hub, " && ip -n ", hub, " link set lo up && ip -n ", hub,
                   " link add switch type bridge && ip -n ", hub, " addr add ", switch_address(),
                   "/24 dev switch && ip -n ", hub, " link set switch up");
  for (int i = 0; i < hosts; ++i) {
    const std::string name = lab->host(i), port = lab->port(i);
    absl::StrAppend(&command, " && ip netns add ", name, " && ip link add ", name,
                    " type veth peer name ", port, " && ip link set ", name, " netns ", name,
                    " && ip link set ", port, " netns ", hub, " && ip -n ", name,
                    " addr add 10.97.0.", i + 1, "/24 dev ", name, " && ip -n ", name,
                    " link set lo up && ip -n ", name, " link set ", name, " up && ip -n ", hub,
                    " link set ", port, " master switch && ip -n ", hub, " link set ", port, " up");
  }
  if (absl::Status made = lab->shell(command); !made.ok()) return made;
  return lab;
}

NetworkLab::~NetworkLab() {
  std::string command = absl::StrCat("ip netns del ", switch_namespace());
  for (int i = 0; i < hosts_; ++i) absl::StrAppend(&command, "; ip netns del ", host(i));
  (void)shell(command);  // where making them failed half way, some are missing
}

absl::Status NetworkLab::shape(int i, double mbit) {
  return shell(absl::StrCat("tc -n ", host(i), " qdisc replace dev ", host(i), " root tbf rate ",
                            static_cast<int64_t>(mbit * 1000), "kbit burst 64kb latency 200ms"));
}

absl::Status NetworkLab::cut(int i) {
  return shell(absl::StrCat("ip -n ", switch_namespace(), " link set ", port(i), " down"));
}

absl::Status NetworkLab::mend(int i) {
  return shell(absl::StrCat("ip -n ", switch_namespace(), " link set ", port(i), " up"));
}

// At both ends of the link, as packets come in.
absl::Status NetworkLab::lose(int i, int percent) {
  const auto rules = [&](const std::string& space, const std::string& device) {
    const std::string table = absl::StrCat("lossy", i);
    const std::string run = absl::StrCat("ip netns exec ", space, " nft ");
    if (percent <= 0) return absl::StrCat(run, "delete table netdev ", table);
    return absl::StrCat(run, "'add table netdev ", table, "; add chain netdev ", table,
                        " in { type filter hook ingress device ", device,
                        " priority 0; }; flush chain netdev ", table, " in; add rule netdev ",
                        table, " in numgen random mod 100 < ", percent, " drop'");
  };
  return shell(absl::StrCat(rules(host(i), host(i)), " && ", rules(switch_namespace(), port(i))));
}

absl::Status enter_namespace(const std::string& name) {
  const int fd = open(absl::StrCat("/var/run/netns/", name).c_str(), O_RDONLY | O_CLOEXEC);
  const bool entered = fd >= 0 && setns(fd, CLONE_NEWNET) == 0 && unshare(CLONE_NEWNS) == 0 &&
                       mount("", "/", "none", MS_SLAVE | MS_REC, nullptr) == 0 &&
                       umount2("/sys", MNT_DETACH) == 0 &&
                       mount(name.c_str(), "/sys", "sysfs", 0, nullptr) == 0;
  if (fd >= 0) close(fd);
  if (entered) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("cannot enter network namespace ", name));
}

}  // namespace annulus::bench
