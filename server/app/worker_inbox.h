// SPDX-License-Identifier: Apache-2.0
// A worker's messages between the thread that reads them and the one that computes, with the count
// of plans among them: more than none when a step ends means that the rank need not wait.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "annulus/v1/worker.pb.h"

namespace annulus::server {

class Inbox {
 public:
  void push(v1::FrontMessage message) {
    {
      const std::lock_guard lock(mutex_);
      if (message.has_plan()) ++plans_;
      queue_.push_back(std::move(message));
    }
    wake_.notify_one();
  }
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    wake_.notify_one();
  }
  std::optional<v1::FrontMessage> pop() {  // nullopt: closed, and nothing is left that matters
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (queue_.empty()) return std::nullopt;
    v1::FrontMessage message = std::move(queue_.front());
    queue_.pop_front();
    if (message.has_plan()) --plans_;
    return message;
  }
  bool ready() {  // pop() would not wait
    const std::lock_guard lock(mutex_);
    return closed_ || !queue_.empty();
  }
  int32_t plans() {
    const std::lock_guard lock(mutex_);
    return plans_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<v1::FrontMessage> queue_;
  int32_t plans_ = 0;
  bool closed_ = false;
};

}  // namespace annulus::server
