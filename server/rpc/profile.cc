// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/profile.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "parallel/profile_fields.h"

namespace annulus::server {

using parallel::kProfileFields;
using parallel::MachineProfile;
using parallel::ProfileField;

std::map<std::string, double> profile_values(const MachineProfile& profile) {
  std::map<std::string, double> values;
  for (const ProfileField& field : kProfileFields) values[field.name] = profile.*field.value;
  return values;
}

absl::StatusOr<MachineProfile> profile_from_values(const std::map<std::string, double>& values) {
  if (values.size() != std::size(kProfileFields)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a machine profile has ", std::size(kProfileFields), " values, this one ", values.size()));
  }
  MachineProfile profile;
  for (const ProfileField& field : kProfileFields) {
    const auto it = values.find(field.name);
    if (it == values.end()) {
      return absl::InvalidArgumentError(absl::StrCat("machine profile: no ", field.name));
    }
    const bool share = field.prices == ProfileField::Prices::kShare;
    const double value = it->second;
    if (!std::isfinite(value) || value < 0 || (value == 0 && field.rate) || (share && value > 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("machine profile: ", field.name, " is ", value));
    }
    profile.*field.value = value;
  }
  return profile;
}

}  // namespace annulus::server
