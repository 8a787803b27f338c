// SPDX-License-Identifier: Apache-2.0
#include "server/trace_file.h"

#include <algorithm>
#include <cstdio>
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
  for (Interval& interval : out) {
    interval.begin_ns -= offset_ns;
    interval.end_ns -= offset_ns;
  }
  return out;
}

absl::StatusOr<std::unique_ptr<TraceFile>> TraceFile::create(const std::string& path,
                                                             std::span<const std::string> ranks) {
  std::unique_ptr<TraceFile> file(new TraceFile(path));
  file->out_ << "[\n";
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
  file->out_.flush();
  if (!file->out_.good()) {
    file->out_.close();
    return absl::InvalidArgumentError(
        absl::StrCat("--trace: cannot write ", path, ": name a file in a folder that is there"));
  }
  return file;
}

TraceFile::~TraceFile() {
  if (!out_.is_open()) return;
  out_ << "\n]\n";
  out_.flush();
  if (!out_.good()) std::fprintf(stderr, "--trace: %s is not whole\n", path_.c_str());
}

absl::Status TraceFile::add_step(const std::string& name,
                                 std::span<const std::vector<Interval>> ranks,
                                 std::span<const TraceClock> clocks) {
  clocks_.resize(clocks.size());
  for (size_t r = 0; r < clocks.size(); ++r) {
    if (std::exchange(clocks_[r], clocks[r]) != clocks[r]) label(r, clocks[r]);
  }
  if (origin_ns_ < 0) {
    origin_ns_ = std::numeric_limits<int64_t>::max();
    for (const auto& rank : ranks) origin_ns_ = std::min(origin_ns_, begin_of(rank));
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
  out_.flush();
  if (out_.good()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("--trace: writing ", path_, " failed: is there room?"));
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
                     ",\"ts\":", time(begin_ns), ",\"dur\":", time(origin_ns_ + end_ns - begin_ns),
                     ",\"args\":{", args, "}"));
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
  if (!first_) out_ << ",\n";
  first_ = false;
  out_ << '{' << fields << '}';
}

std::string TraceFile::time(int64_t ns) const {
  const int64_t since = ns - origin_ns_;
  char digits[32];
  std::snprintf(digits, sizeof digits, "%lld.%03lld", static_cast<long long>(since / 1000),
                static_cast<long long>(since % 1000));
  return digits;
}

}  // namespace annulus::server
