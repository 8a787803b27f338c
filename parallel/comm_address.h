// SPDX-License-Identifier: Apache-2.0
// The bytes of UcxWorld::address() and NcclWorld::address(): the library's own in an envelope that
// names it, layout, rank, epoch and host and carries a checksum, because these libraries trust what
// they unpack. Little-endian layout: u32 magic, u32 version, u32 transport, i32 tp, i32 cp, i32
// world_rank, i64 epoch, u64 host, u64 length, bytes, u64 FNV-1a of all before it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "parallel/topology.h"

namespace annulus::parallel {

enum class Transport : uint32_t { kUcx = 1, kNccl = 2 };

struct AddressStamp {
  Transport transport = Transport::kUcx;
  Topology topology;
  int32_t world_rank = 0;
  int64_t epoch = 0;
};

struct WorkerAddress {
  std::string bytes;  // the library's
  uint64_t host = 0;  // equal: the same machine and namespaces, memory can be shared
};

uint64_t this_host();  // of the running boot, and of this process's pid and ipc namespaces

std::string seal_address(const AddressStamp& stamp, const WorkerAddress& address);
// InvalidArgument: damaged. FailedPrecondition: of another transport, layout, rank or epoch than
// `expected`.
absl::StatusOr<WorkerAddress> open_address(const AddressStamp& expected, std::string_view sealed);

}  // namespace annulus::parallel
