// SPDX-License-Identifier: Apache-2.0
// The worker processes that `annulus serve` and `annulus worker --ranks` start on their own
// machine: started, pinned, watched, started again when they die (with back-off, and not for ever),
// ended with their parent whatever happens to it. One supervising thread forks and waits, because a
// child is killed when the thread that forked it ends (PR_SET_PDEATHSIG). Public methods from any
// thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace annulus::server {

class LocalWorkers {
 public:
  struct Child {
    std::vector<std::string> arguments;  // of this executable, argv[0] included
    std::vector<int> cores;              // empty: not pinned
  };
  struct Options {
    std::vector<Child> children;           // by world rank
    std::vector<std::string> environment;  // "NAME=value", added
    int max_deaths = 8;                    // of one child within a minute, not forgiven: give up
    int first_rank = 0;                    // of the children; for messages
    bool may_end = false;  // a child that ends with 0 or 1 has been told to, and stays away
  };

  explicit LocalWorkers(Options options);
  ~LocalWorkers();  // stop at once

  void start();
  // A worker that is lost to the front end but may live, stopped or hung: it is replaced. Unknown
  // pids are ignored.
  void replace(int64_t pid);
  // All ranks serve: deaths so far were no sign of workers that cannot live.
  void forgive();
  // No more replacements; SIGTERM, which lets a worker drain.
  void ask_to_end();
  // No more replacements; SIGKILLs what has not ended by itself after `grace`.
  void stop(std::chrono::milliseconds grace);
  // Why the workers cannot be kept alive, "" while they can.
  std::string gave_up() const;
  // None runs, and none will.
  bool over() const;
  // The largest exit status of those that ended for good.
  int exit_code() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Slot {
    pid_t pid = -1;
    Clock::time_point start_at;             // when it is not running
    bool ended = false;                     // for good
    std::vector<Clock::time_point> deaths;  // of the last minute
  };

  void supervise();
  void launch(size_t rank);
  void on_exit(size_t rank, int status);
  bool any_alive() const;

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Slot> slots_;  // by world rank
  bool stopping_ = false;
  Clock::time_point kill_at_{};
  std::string gave_up_;
  int exit_code_ = 0;
  std::thread thread_;
};

}  // namespace annulus::server
