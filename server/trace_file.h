// SPDX-License-Identifier: Apache-2.0
// TraceFile: what all ranks did, step by step and on one clock, as ui.perfetto.dev and
// chrome://tracing open it (Trace Event Format, JSON array). A rank is a process with two lanes:
// compute (step > layer > phase) and transfers, with an arrow from who sends a hop to who receives
// it. Written step by step, whole; what is there when a program dies opens too. Ranks of one host
// and simulated ones have one clock (kernels/core/timeline.h); others' intervals are shifted before
// they come here, by an estimate (clock_offset.h) that goes into the file as labels of the rank,
// with its error. One owner, one thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/timeline.h"
#include "parallel/step.h"
#include "parallel/topology.h"

namespace annulus::server {

// Of a rank's host against the front end's: what was taken off its times, and how wrong that may
// be.
struct TraceClock {
  int64_t offset_ns = 0, error_ns = -1;  // -1: they were not compared
  friend bool operator==(const TraceClock&, const TraceClock&) = default;
};

struct TracedStep {
  std::string name;
  std::vector<std::vector<kernels::Interval>> ranks;  // by world rank, on the front end's clock
  std::vector<TraceClock> clocks;
};

std::vector<std::string> rank_names(const parallel::Topology& topology);  // "rank 1: tp 0, cp 1"

// "2048 new behind 4096, pass-kv": groups one after the other, with their least depth.
std::string step_name(const parallel::StepPlan& plan);

// A worker's intervals, as bytes, with `offset_ns` taken off their times. InvalidArgument: they are
// none.
absl::StatusOr<std::vector<kernels::Interval>> read_intervals(std::string_view bytes,
                                                              int64_t offset_ns);

class TraceFile {
 public:
  // ranks: names of world ranks 0, 1, ... InvalidArgument: the file cannot be written, or another
  // program writes it.
  static absl::StatusOr<std::unique_ptr<TraceFile>> create(const std::string& path,
                                                           std::span<const std::string> ranks);
  ~TraceFile();
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;

  // The next step, named; ranks[r]: of world rank r, in order of time in each lane. Ranks without
  // intervals are left out. clocks: of all ranks, or none. Unavailable: it could not be written;
  // the file is as before.
  absl::Status add_step(const std::string& name,
                        std::span<const std::vector<kernels::Interval>> ranks,
                        std::span<const TraceClock> clocks = {});

 private:
  TraceFile(const std::string& path, int file) : path_(path), file_(file) {}
  bool flush();  // false: errno says why
  void add_compute(size_t rank, const std::string& name,
                   std::span<const kernels::Interval> intervals);
  void slice(size_t rank, int lane, const char* category, const std::string& name, int64_t begin_ns,
             int64_t end_ns, const std::string& args);
  void label(size_t rank, const TraceClock& clock);
  void event(const std::string& fields);
  std::string time(int64_t ns) const;  // microseconds since the first step

  std::string path_;
  int file_;
  std::string text_;                // formatted, not written yet
  off_t end_ = 0;                   // of what was written
  std::vector<TraceClock> clocks_;  // as they were written last
  bool first_ = true;
  std::optional<int64_t> origin_ns_;
  int64_t step_ = 0, flows_ = 0;
};

}  // namespace annulus::server
