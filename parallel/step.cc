// SPDX-License-Identifier: Apache-2.0
#include "parallel/step.h"

#include "absl/status/status.h"
#include "kernels/core/check.h"

namespace annulus::parallel {

const char* name(Variant variant) {
  switch (variant) {
    case Variant::kPassKv: return "pass-kv";
    case Variant::kPassQ: return "pass-q";
    case Variant::kGatherQ: return "gather-q";
  }
  return "unknown";
}

absl::StatusOr<Variant> parse_variant(std::string_view text) {
  for (int32_t v = 0; v < kVariants; ++v) {
    if (text == name(static_cast<Variant>(v))) return static_cast<Variant>(v);
  }
  return absl::InvalidArgumentError(
      kernels::concat("unknown attention variant \"", text, "\": use pass-kv, pass-q or gather-q"));
}

std::vector<std::pair<int32_t, int64_t>> sampled_rows(const StepPlan& plan) {
  std::vector<std::pair<int32_t, int64_t>> rows;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    for (const Wanted& wanted : plan.items[i].wanted) {
      if (wanted.sample) rows.emplace_back(static_cast<int32_t>(i), wanted.position);
    }
  }
  return rows;
}

}  // namespace annulus::parallel
