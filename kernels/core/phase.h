// SPDX-License-Identifier: Apache-2.0
// Phases: what a queue is working at, and how long each took. Every piece of a step enters its
// phase on the queue (a breadcrumb); phases nest and are exclusive, so that their times add up to
// the step's; a timeline gets each of them, with the layer and the hop that it belongs to. Off,
// entering costs a store and a predicted branch. A queue that only enqueues waits for its device at
// the end of each phase, so that times are the device's: phases then do not overlap, and a profiled
// step takes longer. Owned by a queue and used from its owner thread; current() from any thread.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "kernels/core/timeline.h"

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
    restart();
  }
  bool enabled() const { return on_; }
  // Waits until what was enqueued has run; empty: it has.
  void settle_with(std::function<void()> settle) { settle_ = std::move(settle); }
  // Phases go to this timeline too, which outlives their use; null: no more. Enables.
  void record(Timeline* timeline) {
    timeline_ = timeline;
    enable(on_ || timeline != nullptr);
  }
  Timeline* timeline() const { return timeline_; }
  Phase current() const { return current_.load(std::memory_order_relaxed); }

  // Returns the phase that ends.
  Phase enter(Phase next) {
    const Phase before = current();
    if (on_) [[unlikely]]
      charge(before);
    current_.store(next, std::memory_order_relaxed);
    return before;
  }

  // Where the step is, for the timeline; -1: in no layer, at no hop.
  void at_layer(int32_t layer) { move(layer_, layer); }
  void at_hop(int32_t hop) { move(hop_, hop); }

  // Forgets the times so far: a step begins here.
  void restart() {
    if (on_) since_ = Clock::now();
    us_ = {};
  }
  // Times since the last take or restart.
  Times take() {
    if (on_) charge(current());
    return std::exchange(us_, Times{});
  }

 private:
  using Clock = std::chrono::steady_clock;
  void charge(Phase phase) {
    if (settle_) settle_();
    const Clock::time_point now = Clock::now(), since = std::exchange(since_, now);
    us_[static_cast<size_t>(phase)] +=
        std::chrono::duration<double, std::micro>(now - since).count();
    if (timeline_ == nullptr || now == since) return;
    Interval interval{.begin_ns = nanoseconds(since), .end_ns = nanoseconds(now)};
    interval.layer = layer_;
    interval.hop = hop_;
    interval.set_name(name(phase));
    timeline_->add(interval);
  }
  void move(int32_t& place, int32_t to) {
    if (on_) [[unlikely]]
      charge(current());
    place = to;
  }

  bool on_ = false;
  std::atomic<Phase> current_{Phase::kOther};
  int32_t layer_ = -1, hop_ = -1;
  Clock::time_point since_ = Clock::now();
  Times us_{};
  Timeline* timeline_ = nullptr;
  std::function<void()> settle_;
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

// Inside a scope, then at no hop.
template <class Queue>
class AtHop {
 public:
  AtHop(Queue& queue, int32_t hop) : queue_(queue) { queue.phases().at_hop(hop); }
  ~AtHop() { queue_.phases().at_hop(-1); }
  AtHop(const AtHop&) = delete;
  AtHop& operator=(const AtHop&) = delete;

 private:
  Queue& queue_;
};

}  // namespace annulus::kernels
