// SPDX-License-Identifier: Apache-2.0
// The threads behind CpuQueue::parallel_for: one owner (the caller) and threads - 1 workers that
// take indices from a shared counter. A worker without work spins for about 20 us, goes on for 1 ms
// at most while nobody else wants its core, then sleeps: ranks share cores, and an idle rank burns
// none. Where the caller may use exactly one core a thread, each thread stays on its own, the
// caller until the end of the pool: a scheduler that wakes two on one core leaves them there for
// milliseconds. A worker that wakes too late for a job does not hold it up. Not reentrant: body
// must not call run() of the same pool.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace annulus::kernels {

class ThreadPool {
 public:
  using Body = std::function<void(int64_t index, int thread)>;

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body for every index in [0, tasks); poll (may be empty) on the calling thread between its
  // tasks and while it waits for the others. Rethrows the first exception.
  void run(int64_t tasks, const Body& body, const std::function<void()>& poll);

 private:
  void work(int thread);
  void take_tasks(int thread, const std::function<void()>* poll);
  bool enter();
  void leave();
  void wait_for_workers(const std::function<void()>& poll);

  std::vector<std::thread> workers_;
  std::vector<int> owner_cores_;  // to be given back at the end; empty: none taken
  bool running_ = false;
  int owner_shared_ = 0;  // waits of the owner that do not linger: see wait_patiently

  // One job at a time. Written by the owner while nobody is inside.
  const Body* body_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  // Bit 0: the job is open; the rest counts workers inside, times two.
  alignas(64) std::atomic<uint32_t> door_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stop_{false};

  std::mutex mutex_;
  std::condition_variable wake_, left_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> owner_sleeps_{false};
  std::exception_ptr error_;  // guarded by mutex_
};

}  // namespace annulus::kernels
