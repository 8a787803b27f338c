// SPDX-License-Identifier: Apache-2.0
// The ids that the last steps have sampled, by row of each plan, where the device reads and writes
// them: a later plan names them before the host knows them. One owner, one thread. Errors:
// DeviceError (memory).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "parallel/step.h"

namespace annulus::parallel {

template <class Queue>
class SampledIds {
 public:
  static constexpr int64_t kSteps = 4;  // that a plan may name

  absl::Status check(const SampledRef& ref) const {
    const Step* step = find(ref.step);
    if (step == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("no ids sampled in step ", ref.step));
    }
    if (ref.row < 0 || ref.row >= step->rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", ref.row, " of the ", step->rows, " sampled in step ", ref.step));
    }
    return absl::OkStatus();
  }

  // Among data(), until the next add().
  int32_t at(const SampledRef& ref) const {
    const Step* step = find(ref.step);
    ANNULUS_CHECK(step != nullptr && ref.row >= 0 && ref.row < step->rows, "row ", ref.row,
                  " of step ", ref.step);
    return static_cast<int32_t>(step->place * room_) + ref.row;
  }
  const int32_t* data() const { return reinterpret_cast<const int32_t*>(memory_.data()); }

  // Where the ids of a step go; those of the step that was kSteps before are gone.
  std::span<int32_t> add(Queue& queue, int64_t step, int32_t rows) {
    if (rows > room_) grow(queue, rows);
    if (static_cast<int64_t>(steps_.size()) == kSteps) steps_.pop_front();
    const int64_t place = steps_.empty() ? 0 : (steps_.back().place + 1) % kSteps;
    steps_.push_back({step, place, rows});
    auto* const ids = reinterpret_cast<int32_t*>(memory_.data());
    return {ids + place * room_, static_cast<size_t>(rows)};
  }

 private:
  struct Step {
    int64_t step, place;
    int32_t rows;
  };
  const Step* find(int64_t step) const {
    const auto found = std::find_if(steps_.begin(), steps_.end(),
                                    [&](const Step& one) { return one.step == step; });
    return found == steps_.end() ? nullptr : &*found;
  }
  void grow(Queue& queue, int32_t rows) {
    constexpr int64_t kId = sizeof(int32_t);
    const int64_t room = std::max<int64_t>(2 * room_, rows);
    typename Queue::Memory bigger(kSteps * room * kId);
    for (const Step& one : steps_) {
      queue.copy(bigger.data() + one.place * room * kId, memory_.data() + one.place * room_ * kId,
                 one.rows * kId);
    }
    queue.retire(std::exchange(memory_, std::move(bigger)));
    room_ = room;
  }

  typename Queue::Memory memory_;  // [kSteps, room_] ids
  int64_t room_ = 0;               // rows a step
  std::deque<Step> steps_;
};

}  // namespace annulus::parallel
