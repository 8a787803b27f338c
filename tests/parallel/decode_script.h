// SPDX-License-Identifier: Apache-2.0
// Plans that decode for a while, for what comes again from step to step.
#pragma once

#include <utility>
#include <vector>

#include "tests/parallel/engine_script.h"

namespace annulus::parallel {

constexpr int32_t kTogether = 27, kAlone = 9;  // decode steps

// Two prompts, then decode by the ids that the device has; the longer sequence goes on alone.
inline std::vector<StepPlan> decode_script(int32_t cp, Variant variant) {
  std::vector<StepPlan> plans;
  auto add = adder(plans, cp, variant);
  const int32_t lengths[] = {37, 11};
  std::vector<Item> prompts;
  for (int32_t s = 0; s < 2; ++s) {
    Item& item = prompts.emplace_back(testing::item_of(s + 1, 0, lengths[s]));
    for (int32_t& token : item.tokens) token %= 250;
    item.wanted = {{lengths[s] - 1, true, 7, 3, true}};
  }
  add({testing::admit(1), testing::admit(2, 1 % cp)}, std::move(prompts));
  for (int32_t k = 0; k < kTogether + kAlone; ++k) {
    std::vector<Item> items;
    for (int32_t s = 0; s < (k < kTogether ? 2 : 1); ++s) {
      Item& item = items.emplace_back();
      item.slot = s + 1;
      item.placement = Placement::kDecode;
      item.spans = {{lengths[s] + k, 1, 1}};
      item.sampled = {static_cast<int64_t>(plans.size()) - 1, s};
      item.wanted = {{lengths[s] + k, true, 7, 0, false}};
    }
    std::vector<Op> ops;
    if (k == kTogether) ops.push_back(testing::op_of(Op::Kind::kRelease, 2));
    add(std::move(ops), std::move(items));
  }
  return plans;
}

}  // namespace annulus::parallel
