// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_address.h"

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace annulus::parallel {
namespace {

static_assert(std::endian::native == std::endian::little);

struct Head {
  uint32_t magic = 0x414e5841;  // "AXNA"
  uint32_t version = 2;
  Transport transport = Transport::kUcx;
  int32_t tp = 0, cp = 0, world_rank = 0;
  int64_t epoch = 0;
  uint64_t host = 0, length = 0;
};
static_assert(sizeof(Head) == 48);

uint64_t checksum(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace

uint64_t this_host() {
  std::string text;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), text);
  for (const char* space : {"/proc/self/ns/pid", "/proc/self/ns/ipc"}) {
    std::error_code error;
    text += ' ';
    text += std::filesystem::read_symlink(space, error).string();
  }
  return checksum(text);
}

std::string seal_address(const AddressStamp& stamp, const WorkerAddress& address) {
  const Head head{.transport = stamp.transport,
                  .tp = stamp.topology.tp,
                  .cp = stamp.topology.cp,
                  .world_rank = stamp.world_rank,
                  .epoch = stamp.epoch,
                  .host = address.host,
                  .length = address.bytes.size()};
  std::string sealed(reinterpret_cast<const char*>(&head), sizeof head);
  sealed += address.bytes;
  const uint64_t sum = checksum(sealed);
  sealed.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  return sealed;
}

absl::StatusOr<WorkerAddress> open_address(const AddressStamp& expected, std::string_view sealed) {
  Head head;
  uint64_t sum = 0;
  const auto damaged = [&](const char* how) {
    return absl::InvalidArgumentError(absl::StrCat("data-plane address of world rank ",
                                                   expected.world_rank, ": ", how, " (",
                                                   sealed.size(), " bytes)"));
  };
  if (sealed.size() <= sizeof head + sizeof sum) return damaged("too short");
  std::memcpy(&head, sealed.data(), sizeof head);
  const std::string_view covered = sealed.substr(0, sealed.size() - sizeof sum);
  std::memcpy(&sum, sealed.data() + covered.size(), sizeof sum);
  if (head.magic != Head{}.magic) return damaged("not an address");
  if (head.version != Head{}.version) return damaged("of another version of this program");
  if (head.length != covered.size() - sizeof head || sum != checksum(covered))
    return damaged("damaged");
  if (head.transport != expected.transport) {
    const auto device = [](Transport t) { return t == Transport::kNccl ? "cuda" : "cpu"; };
    return absl::FailedPreconditionError(absl::StrCat(
        "world rank ", expected.world_rank, " runs with --device ", device(head.transport),
        ", this one with --device ", device(expected.transport), ": all ranks need the same"));
  }
  if (head.tp != expected.topology.tp || head.cp != expected.topology.cp ||
      head.world_rank != expected.world_rank || head.epoch != expected.epoch) {
    return absl::FailedPreconditionError(absl::StrCat(
        "data-plane address of rank ", head.world_rank, " in TP", head.tp, " x CP", head.cp,
        ", epoch ", head.epoch, "; expected rank ", expected.world_rank, " in TP",
        expected.topology.tp, " x CP", expected.topology.cp, ", epoch ", expected.epoch));
  }
  return WorkerAddress{.bytes = std::string(covered.substr(sizeof head)), .host = head.host};
}

}  // namespace annulus::parallel
