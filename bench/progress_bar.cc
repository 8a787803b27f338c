// SPDX-License-Identifier: Apache-2.0
#include "bench/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"

namespace annulus::bench {
namespace {

constexpr int kCells = 30;
constexpr std::chrono::milliseconds kRedraw{100}, kLine{10000};

}  // namespace

std::string progress_line(const std::string& what, double share, double elapsed_s,
                          const std::string& note) {
  share = std::clamp(share, 0.0, 1.0);
  const int full = static_cast<int>(share * kCells);
  std::string line = absl::StrFormat(
      "%s [%s%s] %3.0f %%, %.0f s", what, std::string(static_cast<size_t>(full), '#'),
      std::string(static_cast<size_t>(kCells - full), '-'), 100 * share, elapsed_s);
  if (elapsed_s >= 2 && share >= 0.02)
    absl::StrAppendFormat(&line, ", %.0f s to go", elapsed_s * (1 - share) / share);
  return note.empty() ? line : line + "  " + note;
}

ProgressBar::ProgressBar(std::string what)
    : what_(std::move(what)), terminal_(isatty(STDERR_FILENO) != 0) {}

void ProgressBar::show(double share, const std::string& note) {
  const Clock::time_point now = Clock::now();
  if (now - shown_ < (terminal_ ? kRedraw : kLine)) return;
  shown_ = now;
  const std::string line =
      progress_line(what_, share, std::chrono::duration<double>(now - start_).count(), note);
  // \r and erase to the end of the line: a shorter line leaves nothing of the last one.
  std::fprintf(stderr, terminal_ ? "\r%s\x1b[K" : "%s\n", line.c_str());
  std::fflush(stderr);
  drawn_ = terminal_;
}

void ProgressBar::clear() {
  if (!std::exchange(drawn_, false)) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
}

}  // namespace annulus::bench
