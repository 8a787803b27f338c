// SPDX-License-Identifier: Apache-2.0
#include "bench/variant_times.h"

#include <algorithm>

#include "bench/rank_flags.h"

namespace annulus::bench {

using namespace parallel;  // NOLINT: everything here is about ranks

absl::StatusOr<VariantTimes> measure_variants(RankGroup& group, int32_t slot, int32_t cached,
                                              int32_t fresh, int repeats) {
  const int32_t vocab = group.config().vocab;
  VariantTimes times;
  StepPlan prepare;
  if (cached > 0)
    prepare = append_plan(slot, 0, cached, Variant::kPassKv, Placement::kPrompt, vocab);
  prepare.ops = {admit_op(slot)};
  if (auto r = group.run(prepare); !r.ok()) return r.status();
  for (int repeat = 0; repeat <= repeats; ++repeat) {
    for (int turn = 0; turn < kVariants; ++turn) {
      // In rotating order, so that none always follows the same one.
      const Variant variant = kAllVariants[(turn + repeat) % kVariants];
      StepPlan plan = append_plan(slot, cached, fresh, variant, Placement::kPrompt, vocab);
      plan.ops = {slot_op(Op::Kind::kTruncate, slot, cached)};
      const auto results = group.run(plan);
      if (!results.ok()) return results.status();
      const auto v = static_cast<size_t>(variant);
      if (repeat > 0) {
        times.us[v].push_back(attention_us(*results));
        times.parts[v].push_back(server::slowest(*results, 0));
      }
      times.bytes[v] = 0;
      for (const StepResult& r : *results)
        times.bytes[v] = std::max(times.bytes[v], r.groups[0].bytes_sent);
    }
  }
  StepPlan end;
  end.ops = {slot_op(Op::Kind::kRelease, slot)};
  if (auto r = group.run(end); !r.ok()) return r.status();
  return times;
}

}  // namespace annulus::bench
