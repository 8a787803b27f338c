// SPDX-License-Identifier: Apache-2.0
// A few threads and a bounded queue: parsing and tokenising of requests, which must not occupy
// gRPC's threads. post() from any thread; tasks run in order of arrival. The destructor runs what
// is queued.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace annulus::server {

class TaskPool {
 public:
  TaskPool(int threads, size_t max_queued);
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // False: the queue is full and the task was not taken.
  [[nodiscard]] bool post(std::function<void()> task);

 private:
  void work();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace annulus::server
