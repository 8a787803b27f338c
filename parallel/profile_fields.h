// SPDX-License-Identifier: Apache-2.0
// The fields of MachineProfile, by name and by what they price: for what travels, is shown or is
// corrected field by field. PURE.
#pragma once

#include <iterator>

#include "parallel/ring_policy.h"

namespace annulus::parallel {

struct ProfileField {
  enum class Prices { kAttention, kTransfers, kShare, kLinear };
  const char* name;
  double MachineProfile::*value;
  Prices prices;
  bool rate;  // work per microsecond, above 0; else microseconds or a share, which may be 0
};

inline constexpr ProfileField kProfileFields[] = {
    {"attend_flops_per_us", &MachineProfile::attend_flops_per_us, ProfileField::Prices::kAttention,
     true},
    {"kv_read_bytes_per_us", &MachineProfile::kv_read_bytes_per_us,
     ProfileField::Prices::kAttention, true},
    {"attend_overhead_us", &MachineProfile::attend_overhead_us, ProfileField::Prices::kAttention,
     false},
    {"op_overhead_us", &MachineProfile::op_overhead_us, ProfileField::Prices::kAttention, false},
    {"merge_bytes_per_us", &MachineProfile::merge_bytes_per_us, ProfileField::Prices::kAttention,
     true},
    {"pack_bytes_per_us", &MachineProfile::pack_bytes_per_us, ProfileField::Prices::kAttention,
     true},
    {"hop_overhead_us", &MachineProfile::hop_overhead_us, ProfileField::Prices::kTransfers, false},
    {"link_latency_us", &MachineProfile::link_latency_us, ProfileField::Prices::kTransfers, false},
    {"link_bytes_per_us", &MachineProfile::link_bytes_per_us, ProfileField::Prices::kTransfers,
     true},
    {"overlap", &MachineProfile::overlap, ProfileField::Prices::kShare, false},
    {"collective_overhead_us", &MachineProfile::collective_overhead_us,
     ProfileField::Prices::kTransfers, false},
    {"collective_bytes_per_us", &MachineProfile::collective_bytes_per_us,
     ProfileField::Prices::kTransfers, true},
    {"linear_us_per_row", &MachineProfile::linear_us_per_row, ProfileField::Prices::kLinear, false},
};
static_assert(sizeof(MachineProfile) == sizeof(double) * std::size(kProfileFields),
              "a field of MachineProfile is not listed above");

// That of a machine whose attention and transfers take so many times as long.
inline MachineProfile slower(MachineProfile profile, double attention, double transfers) {
  for (const ProfileField& field : kProfileFields) {
    const double by = field.prices == ProfileField::Prices::kAttention   ? attention
                      : field.prices == ProfileField::Prices::kTransfers ? transfers
                                                                         : 1;
    double& value = profile.*field.value;
    value = field.rate ? value / by : value * by;
  }
  return profile;
}

}  // namespace annulus::parallel
