// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/profile.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace annulus::server {

namespace {

using parallel::MachineProfile;

struct Field {
  const char* name;
  double MachineProfile::*member;
};
constexpr Field kFields[] = {
    {"attend_flops_per_us", &MachineProfile::attend_flops_per_us},
    {"kv_read_bytes_per_us", &MachineProfile::kv_read_bytes_per_us},
    {"attend_overhead_us", &MachineProfile::attend_overhead_us},
    {"link_bytes_per_us", &MachineProfile::link_bytes_per_us},
    {"link_latency_us", &MachineProfile::link_latency_us},
    {"merge_bytes_per_us", &MachineProfile::merge_bytes_per_us},
    {"pack_bytes_per_us", &MachineProfile::pack_bytes_per_us},
    {"overlap", &MachineProfile::overlap},
    {"linear_us_per_row", &MachineProfile::linear_us_per_row},
};
static_assert(sizeof(MachineProfile) == sizeof(double) * std::size(kFields),
              "a field of MachineProfile is not listed above");

}  // namespace

std::map<std::string, double> profile_values(const MachineProfile& profile) {
  std::map<std::string, double> values;
  for (const Field& field : kFields) values[field.name] = profile.*field.member;
  return values;
}

absl::StatusOr<MachineProfile> profile_from_values(const std::map<std::string, double>& values) {
  if (values.size() != std::size(kFields)) {
    return absl::InvalidArgumentError(absl::StrCat("a machine profile has ", std::size(kFields),
                                                   " values, this one ", values.size()));
  }
  MachineProfile profile;
  for (const Field& field : kFields) {
    const auto it = values.find(field.name);
    if (it == values.end()) {
      return absl::InvalidArgumentError(absl::StrCat("machine profile: no ", field.name));
    }
    const bool overlap = field.member == &MachineProfile::overlap;
    // Latencies and overheads may round to zero; rates divide.
    const bool may_be_zero = overlap || field.member == &MachineProfile::attend_overhead_us ||
                             field.member == &MachineProfile::link_latency_us ||
                             field.member == &MachineProfile::linear_us_per_row;
    const double value = it->second;
    if (!std::isfinite(value) || value < 0 || (value == 0 && !may_be_zero) ||
        (overlap && value > 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("machine profile: ", field.name, " is ", value));
    }
    profile.*field.member = value;
  }
  return profile;
}

}  // namespace annulus::server
