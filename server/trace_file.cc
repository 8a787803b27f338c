// SPDX-License-Identifier: Apache-2.0
#include "server/trace_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"

namespace annulus::server {
namespace {

using kernels::Interval;

constexpr int kComputeLane = 0, kTransferLane = 1;

int64_t begin_of(std::span<const Interval> intervals) {
  int64_t begin = std::numeric_limits<int64_t>::max();
  for (const Interval& i : intervals) begin = std::min(begin, i.begin_ns);
  return begin;
}

std::string number(const char* key, int64_t value) {
  return absl::StrCat("\"", key, "\":", value);
}

std::string text(const char* key, const std::string& value) {
  return absl::StrCat("\"", key, "\":\"", value, "\"");
}

std::string us(int64_t ns) {
  char digits[32];
  const auto size = static_cast<long long>(std::abs(ns));
  std::snprintf(digits, sizeof digits, "%s%lld.%03lld", ns < 0 ? "-" : "", size / 1000,
                size % 1000);
  return digits;
}

constexpr int64_t kLatest_ns = int64_t{1} << 60;  // of any clock: 36 years since it began

bool is_possible(const Interval& i) {
  const auto is_time = [](int64_t ns) { return -kLatest_ns < ns && ns < kLatest_ns; };
  const auto is_name = [](char c) {
    return c == 0 || (c >= ' ' && c <= '~' && c != '"' && c != '\\');
  };
  return is_time(i.begin_ns) && is_time(i.end_ns) && i.begin_ns <= i.end_ns && i.name.back() == 0 &&
         std::all_of(i.name.begin(), i.name.end(), is_name) &&
         (i.lane == Interval::Lane::kCompute || i.lane == Interval::Lane::kTransfer);
}

}  // namespace

std::vector<std::string> rank_names(const parallel::Topology& topology) {
  std::vector<std::string> names;
  for (int32_t r = 0; r < topology.world(); ++r) {
    names.push_back(
        absl::StrCat("rank ", r, ": tp ", topology.tp_rank(r), ", cp ", topology.cp_rank(r)));
  }
  return names;
}

std::string step_name(const parallel::StepPlan& plan) {
  std::string text;
  for (const parallel::Group& group : plan.groups) {
    int64_t fresh = 0, behind = std::numeric_limits<int64_t>::max();
    for (const int32_t i : group.items) {
      const parallel::Item& item = plan.items[static_cast<size_t>(i)];
      fresh += item.count();
      behind = std::min(behind, item.spans.front().first);
    }
    absl::StrAppend(&text, text.empty() ? "" : "; ", fresh, " new behind ", behind, ", ",
                    parallel::name(group.variant));
  }
  return text;
}

absl::StatusOr<std::vector<Interval>> read_intervals(std::string_view bytes, int64_t offset_ns) {
  const size_t count = bytes.size() / sizeof(Interval);
  std::vector<Interval> out(count);
  if (count > 0) std::memcpy(out.data(), bytes.data(), count * sizeof(Interval));
  if (bytes.size() != count * sizeof(Interval) ||
      !std::all_of(out.begin(), out.end(), is_possible)) {
    return absl::InvalidArgumentError("its trace of a step is none");
  }
  int64_t before = -kLatest_ns;  // in the compute lane, whose intervals are grouped by layer
  for (const Interval& interval : out) {
    if (interval.lane != Interval::Lane::kCompute) continue;
    if (interval.begin_ns < before)
      return absl::InvalidArgumentError("its trace of a step is not in order of time");
    before = interval.begin_ns;
  }
  for (Interval& interval : out) {
    interval.begin_ns -= offset_ns;
    interval.end_ns -= offset_ns;
  }
  return out;
}

absl::StatusOr<std::unique_ptr<TraceFile>> TraceFile::create(const std::string& path,
                                                             std::span<const std::string> ranks) {
  const auto cannot = [&](int error) {
    return absl::InvalidArgumentError(
        absl::StrCat("--trace: cannot write ", path, ": ", std::strerror(error)));
  };
  const int opened = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (opened < 0) return cannot(errno);
  std::unique_ptr<TraceFile> file(new TraceFile(path, opened));
  // Another server's trace is not emptied.
  if (flock(opened, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return absl::InvalidArgumentError(
        absl::StrCat("--trace: another program writes ", path, ": name another file"));
  }
  if (ftruncate(opened, 0) != 0 && errno != EINVAL) return cannot(errno);  // EINVAL: a pipe
  file->text_ = "[\n";
  for (size_t r = 0; r < ranks.size(); ++r) {
    const auto pid = static_cast<int64_t>(r);
    const auto name_it = [&](const char* what, int lane, const std::string& name) {
      file->event(absl::StrCat(text("ph", "M"), ",", text("name", what), ",", number("pid", pid),
                               ",", number("tid", lane), ",\"args\":{", text("name", name), "}"));
    };
    name_it("process_name", kComputeLane, ranks[r]);
    name_it("thread_name", kComputeLane, "compute");
    name_it("thread_name", kTransferLane, "transfers");
    file->event(absl::StrCat(text("ph", "M"), ",", text("name", "process_sort_index"), ",",
                             number("pid", pid), ",\"args\":{", number("sort_index", pid), "}"));
  }
  if (!file->flush()) return cannot(errno);
  return file;
}

TraceFile::~TraceFile() {
  text_ = "\n]\n";
  if (end_ > 0 && !flush()) std::fprintf(stderr, "--trace: %s is not whole\n", path_.c_str());
  close(file_);
}

// All of what was formatted, or nothing of it, so that what is there stays a trace.
bool TraceFile::flush() {
  for (std::string_view rest = text_; !rest.empty();) {
    const ssize_t written = write(file_, rest.data(), rest.size());
    if (written >= 0) {
      rest.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      const int why = errno;
      if (ftruncate(file_, end_) == 0) lseek(file_, end_, SEEK_SET);
      text_.clear();
      errno = why;
      return false;
    }
  }
  end_ += static_cast<off_t>(text_.size());
  text_.clear();
  return true;
}

absl::Status TraceFile::add_step(const std::string& name,
                                 std::span<const std::vector<Interval>> ranks,
                                 std::span<const TraceClock> clocks) {
  clocks_.resize(clocks.size());
  for (size_t r = 0; r < clocks.size(); ++r) {
    if (std::exchange(clocks_[r], clocks[r]) != clocks[r]) label(r, clocks[r]);
  }
  if (!origin_ns_) {
    int64_t begin = std::numeric_limits<int64_t>::max();
    for (const auto& rank : ranks) begin = std::min(begin, begin_of(rank));
    if (begin < std::numeric_limits<int64_t>::max()) origin_ns_ = begin;
  }
  ++step_;
  // Who sends, layer, sequence, hop, name: of a message within the step.
  std::map<std::tuple<int64_t, int32_t, int32_t, int32_t, std::string>, int64_t> flow_of;
  for (size_t r = 0; r < ranks.size(); ++r) {
    std::vector<Interval> compute;
    for (const Interval& i : ranks[r]) {
      if (i.lane == Interval::Lane::kCompute) compute.push_back(i);
    }
    add_compute(r, name, compute);
    for (const Interval& i : ranks[r]) {
      if (i.lane == Interval::Lane::kCompute) continue;
      const bool is_hop = i.to >= 0 || i.from >= 0;
      std::string args = absl::StrCat(number("step", step_), ",", number("layer", i.layer), ",",
                                      number("sequence", i.sequence));
      if (is_hop) {
        absl::StrAppend(&args, ",", number("hop", i.hop), ",", number("to", i.to), ",",
                        number("from", i.from));
      }
      if (i.sent_bytes > 0) absl::StrAppend(&args, ",", number("sent_bytes", i.sent_bytes));
      if (i.received_bytes > 0)
        absl::StrAppend(&args, ",", number("received_bytes", i.received_bytes));
      slice(r, kTransferLane, is_hop ? "hop" : "collective", i.name.data(), i.begin_ns, i.end_ns,
            args);
      const auto arrow = [&](const char* end, int64_t sender, int64_t at_ns) {
        const auto [it, is_new] =
            flow_of.try_emplace({sender, i.layer, i.sequence, i.hop, i.name.data()}, flows_ + 1);
        if (is_new) ++flows_;
        event(absl::StrCat(end, ",", text("cat", "hop"), ",", text("name", "payload"), ",",
                           number("id", it->second), ",", number("pid", static_cast<int64_t>(r)),
                           ",", number("tid", kTransferLane), ",\"ts\":", time(at_ns)));
      };
      // Within the slices: at the end of one the next begins.
      if (i.to >= 0) arrow("\"ph\":\"s\"", static_cast<int64_t>(r), i.begin_ns);
      if (i.from >= 0) arrow("\"ph\":\"f\",\"bp\":\"e\"", i.from, i.end_ns - 1);
    }
  }
  if (flush()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("--trace: writing ", path_, ": ", std::strerror(errno),
                                             "; no more steps are written"));
}

// Whole before part: viewers nest what begins together in the order of the file.
void TraceFile::add_compute(size_t rank, const std::string& name,
                            std::span<const Interval> intervals) {
  if (intervals.empty()) return;
  const std::string step = number("step", step_);
  slice(rank, kComputeLane, "step", name, intervals.front().begin_ns, intervals.back().end_ns,
        step);
  for (size_t first = 0; first < intervals.size();) {
    const int32_t layer = intervals[first].layer;
    size_t end = first + 1;
    while (end < intervals.size() && intervals[end].layer == layer) ++end;
    std::string args = step;
    if (layer >= 0) {
      absl::StrAppend(&args, ",", number("layer", layer));
      slice(rank, kComputeLane, "layer", absl::StrCat("layer ", layer), intervals[first].begin_ns,
            intervals[end - 1].end_ns, args);
    }
    for (; first < end; ++first) {
      const Interval& i = intervals[first];
      slice(rank, kComputeLane, "phase", i.name.data(), i.begin_ns, i.end_ns,
            i.hop < 0 ? args : absl::StrCat(args, ",", number("hop", i.hop)));
    }
  }
}

void TraceFile::slice(size_t rank, int lane, const char* category, const std::string& name,
                      int64_t begin_ns, int64_t end_ns, const std::string& args) {
  event(absl::StrCat(text("ph", "X"), ",", text("cat", category), ",", text("name", name), ",",
                     number("pid", static_cast<int64_t>(rank)), ",", number("tid", lane),
                     ",\"ts\":", time(begin_ns), ",\"dur\":", us(end_ns - begin_ns), ",\"args\":{",
                     args, "}"));
}

void TraceFile::label(size_t rank, const TraceClock& clock) {
  char labels[96] = "clock not compared";
  if (clock.error_ns >= 0)
    std::snprintf(labels, sizeof labels, "clock shifted by %.3f ms, to within %.3f ms",
                  static_cast<double>(-clock.offset_ns) * 1e-6,
                  static_cast<double>(clock.error_ns) * 1e-6);
  event(absl::StrCat(text("ph", "M"), ",", text("name", "process_labels"), ",",
                     number("pid", static_cast<int64_t>(rank)), ",\"args\":{",
                     text("labels", labels), ",", number("clock_offset_ns", clock.offset_ns), ",",
                     number("clock_error_ns", clock.error_ns), "}"));
}

void TraceFile::event(const std::string& fields) {
  absl::StrAppend(&text_, first_ ? "{" : ",\n{", fields, "}");
  first_ = false;
}

std::string TraceFile::time(int64_t ns) const {
  return us(ns - origin_ns_.value_or(0));
}

}  // namespace annulus::server
