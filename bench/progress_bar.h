// SPDX-License-Identifier: Apache-2.0
// How far a benchmark has come, on stderr: one line that is drawn again where stderr is a terminal
// (ten times a second at most), else a plain line every ten seconds, so that logs stay short. Used
// from one thread. The line is erased with the object, and by clear() before something else is
// printed.
#pragma once

#include <chrono>
#include <string>

namespace annulus::bench {

// "latency [######----] 61 %, 12 s, 8 s to go  NOTE"; no guess before 2 s and 2 %.
std::string progress_line(const std::string& what, double share, double elapsed_s,
                          const std::string& note);

class ProgressBar {
 public:
  explicit ProgressBar(std::string what);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(double share, const std::string& note);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  const std::string what_;
  const bool terminal_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point shown_ = start_;
  bool drawn_ = false;
};

}  // namespace annulus::bench
