// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/thread_pool.h"

#include <sched.h>

#include <chrono>
#include <span>
#include <utility>

#include "kernels/core/check.h"

namespace annulus::kernels {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(20), kBetweenYields = std::chrono::microseconds(2);
constexpr auto kGone = std::chrono::microseconds(50);
constexpr auto kPatience = std::chrono::milliseconds(1);
constexpr int kRemember = 128;  // waits for which a core counts as shared
constexpr uint32_t kOpen = 1, kOne = 2;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

std::vector<int> allowed_cores() {
  std::vector<int> cores;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(static_cast<size_t>(core), &set)) cores.push_back(core);
  return cores;
}

void run_on(std::span<const int> cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(static_cast<size_t>(core), &set);
  sched_setaffinity(0, sizeof set, &set);
}

// Spins until done() or the time is over; reads the clock every few turns only.
template <class Done>
bool spin_until(const Done& done, Clock::duration limit) {
  const auto end = Clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return done();
}

// Spins, then goes on while nobody else wants the core: the next piece of a step comes sooner than
// a sleeper wakes. False: it is time to block. between() runs every few microseconds. shared counts
// down the waits that do without, after one that lost its core to others.
template <class Done, class Between>
bool wait_patiently(const Done& done, const Between& between, int& shared) {
  if (spin_until(done, kSpin)) return true;
  if (shared > 0) {
    --shared;
    return false;
  }
  const auto end = Clock::now() + kPatience;
  for (auto now = Clock::now(); now < end; now = Clock::now()) {
    between();
    const auto before = Clock::now();
    std::this_thread::yield();
    if (Clock::now() - before > kGone) {
      shared = kRemember;
      return done();
    }
    if (spin_until(done, kBetweenYields)) return true;
  }
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  ANNULUS_CHECK(threads >= 1, threads);
  const std::vector<int> cores = allowed_cores();
  const bool own_core = threads > 1 && cores.size() == static_cast<size_t>(threads);
  workers_.reserve(static_cast<size_t>(threads) - 1);
  for (int t = 1; t < threads; ++t) {
    const int core = own_core ? cores[static_cast<size_t>(t)] : -1;
    workers_.emplace_back([this, t, core] {
      if (core >= 0) run_on({&core, 1});
      work(t);
    });
  }
  if (!own_core) return;
  run_on(std::span(cores).first(1));
  owner_cores_ = cores;
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  if (!owner_cores_.empty()) run_on(owner_cores_);
}

void ThreadPool::run(int64_t tasks, const Body& body, const std::function<void()>& poll) {
  ANNULUS_CHECK(!running_, "parallel_for inside parallel_for");
  if (tasks <= 0) return;
  if (workers_.empty() || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) {
      body(i, 0);
      if (poll) poll();
    }
    return;
  }
  running_ = true;
  body_ = &body;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  door_.store(kOpen, std::memory_order_release);
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) {
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  take_tasks(0, &poll);
  door_.fetch_sub(kOpen);
  wait_for_workers(poll);
  running_ = false;
  std::exception_ptr error;
  {
    std::lock_guard lock(mutex_);
    error = std::exchange(error_, nullptr);
  }
  if (error) std::rethrow_exception(error);
}

// An exception ends the job early and reaches the caller of run(); it may not leave a worker.
void ThreadPool::take_tasks(int thread, const std::function<void()>* poll) {
  try {
    for (;;) {
      int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= tasks_) return;
      (*body_)(index, thread);
      if (poll != nullptr && *poll) (*poll)();
    }
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
    next_.store(tasks_, std::memory_order_relaxed);
  }
}

bool ThreadPool::enter() {
  uint32_t door = door_.load();
  while ((door & kOpen) != 0)
    if (door_.compare_exchange_weak(door, door + kOne)) return true;
  return false;
}

void ThreadPool::leave() {
  if (door_.fetch_sub(kOne) == kOne && owner_sleeps_.load()) {
    std::lock_guard lock(mutex_);
    left_.notify_one();
  }
}

void ThreadPool::wait_for_workers(const std::function<void()>& poll) {
  auto empty = [this] { return door_.load() == 0; };
  // A failing poll must not leave before the workers: they use the caller's body.
  auto guarded_poll = [&] {
    if (!poll) return;
    try {
      poll();
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  };
  if (wait_patiently(empty, guarded_poll, owner_shared_)) return;
  while (!spin_until(empty, kSpin)) {
    guarded_poll();
    std::unique_lock lock(mutex_);
    owner_sleeps_.store(true);
    left_.wait_for(lock, std::chrono::microseconds(50), empty);
    owner_sleeps_.store(false);
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  int shared = 0;
  auto called = [&] { return generation_.load() != seen || stop_.load(); };
  for (;;) {
    if (!wait_patiently(
            called, [] {}, shared)) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, called);
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = generation_.load();
    if (enter()) {
      take_tasks(thread, nullptr);
      leave();
    }
  }
}

}  // namespace annulus::kernels
