// SPDX-License-Identifier: Apache-2.0
// Plans that bring an engine through what it does, for any number of CP ranks.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tests/parallel/sharding/plans.h"

namespace annulus::parallel {

// add(ops, items) appends the plan of the next step to `plans`, which outlives it.
inline auto adder(std::vector<StepPlan>& plans, int32_t cp, Variant variant) {
  return [&plans, variant, state = testing::state_of(cp)](std::vector<Op> ops,
                                                          std::vector<Item> items) mutable {
    StepPlan plan = testing::plan_of(state, std::move(ops), std::move(items));
    plan.epoch = 1;
    plan.step = static_cast<int64_t>(plans.size());
    for (Group& group : plan.groups) group.variant = variant;
    state = advance(std::move(state), plan);
    plans.push_back(std::move(plan));
  };
}

// Two sequences: prefill in two chunks beside decode, decode from what was sampled, then a fork, a
// truncation over a page's edge, and more prefill behind what is cached. `sampling` of the first,
// `other_sampling` of the second.
inline std::vector<StepPlan> engine_script_with(int32_t cp, Variant variant,
                                                const SamplingParams& sampling,
                                                const SamplingParams& other_sampling) {
  std::vector<StepPlan> plans;
  auto add = adder(plans, cp, variant);
  const auto decode = [](int32_t slot, int64_t position, SampledRef from) {
    Item item;
    item.slot = slot;
    item.placement = Placement::kDecode;
    item.spans = {{position, 1, 1}};
    item.sampled = from;
    item.wanted = {{position, true, 7, 3, true}};
    return item;
  };
  Item prompt = testing::item_of(1, 0, 13), other = testing::item_of(2, 0, 7);
  other.wanted = {{6, true, 5, 2, true}};
  Op first = testing::admit(1), second = testing::admit(2, 1 % cp);
  first.sampling = sampling;
  second.sampling = other_sampling;
  add({first, second}, {prompt, other});
  prompt = testing::item_of(1, 13, 9);
  prompt.wanted = {{13, false, 3, 0}, {21, true, -1, 4}};
  add({}, {prompt, decode(2, 7, {0, 0})});
  add({}, {decode(1, 22, {1, 0}), decode(2, 8, {1, 1})});
  Item more = testing::item_of(3, 20, 11), again = testing::item_of(2, 5, 3);
  more.wanted = {{25, false, 9, 0}, {30, true, -1, 2, true}};
  again.wanted = {{7, true, -1, 0}};
  add({testing::op_of(Op::Kind::kFork, 3, 20, 1), testing::op_of(Op::Kind::kTruncate, 2, 5)},
      {more, again});
  add({testing::op_of(Op::Kind::kRelease, 1)}, {decode(3, 31, {3, 0}), decode(2, 8, {3, 1})});
  return plans;
}

inline std::vector<StepPlan> engine_script(int32_t cp, Variant variant) {
  return engine_script_with(cp, variant, {}, {});
}
// With every filter.
inline std::vector<StepPlan> sampled_script(int32_t cp, Variant variant) {
  return engine_script_with(cp, variant, {0.9f, 40, 0.95f, 0, 11}, {1.3f, 0, 1, 0.02f, 12});
}

}  // namespace annulus::parallel
