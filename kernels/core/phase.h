// SPDX-License-Identifier: Apache-2.0
// Phases: what a queue is working at, and how long each took. Every piece of a step enters its
// phase on the queue (a breadcrumb); phases nest and are exclusive, so that their times add up to
// the step's. Off, entering costs a store and a predicted branch. A queue that only enqueues would
// record events here instead of reading a clock. Owned by a queue and used from its owner thread;
// current() from any thread.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace annulus::kernels {

enum class Phase : uint8_t {
  kOther,  // planning, layout, bookkeeping
  kEmbed,
  kNorm,
  kQkv,
  kRope,
  kKvAppend,
  kAttention,
  kMerge,
  kOutput,
  kGateUp,
  kSwiglu,
  kDown,
  kAdd,
  kHead,
  kSample,
  kSend,  // packing and starting transfers
  kWait,  // for peers, and moving what they sent
};
inline constexpr size_t kPhases = static_cast<size_t>(Phase::kWait) + 1;
const char* name(Phase phase);

class PhaseClock {
 public:
  using Times = std::array<double, kPhases>;  // microseconds by phase

  void enable(bool on) {
    on_ = on;
    take();
  }
  bool enabled() const { return on_; }
  Phase current() const { return current_.load(std::memory_order_relaxed); }

  // Returns the phase that ends.
  Phase enter(Phase next) {
    const Phase before = current();
    if (on_) [[unlikely]]
      charge(before);
    current_.store(next, std::memory_order_relaxed);
    return before;
  }

  // Times since the last take.
  Times take() {
    if (on_) charge(current());
    return std::exchange(us_, Times{});
  }

 private:
  using Clock = std::chrono::steady_clock;
  void charge(Phase phase) {
    const Clock::time_point now = Clock::now();
    us_[static_cast<size_t>(phase)] +=
        std::chrono::duration<double, std::micro>(now - std::exchange(since_, now)).count();
  }

  bool on_ = false;
  std::atomic<Phase> current_{Phase::kOther};
  Clock::time_point since_ = Clock::now();
  Times us_{};
};

// Inside a scope, then back to what was before.
template <class Queue>
class InPhase {
 public:
  InPhase(Queue& queue, Phase phase) : queue_(queue), before_(queue.phases().enter(phase)) {}
  ~InPhase() { queue_.phases().enter(before_); }
  InPhase(const InPhase&) = delete;
  InPhase& operator=(const InPhase&) = delete;

 private:
  Queue& queue_;
  Phase before_;
};

}  // namespace annulus::kernels
