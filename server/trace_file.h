// SPDX-License-Identifier: Apache-2.0
// TraceFile: what all ranks did, step by step and on one clock, as ui.perfetto.dev and
// chrome://tracing open it (Trace Event Format, JSON array). A rank is a process with two lanes:
// compute (step > layer > phase) and transfers, with an arrow from who sends a hop to who receives
// it. Written as it goes; what is there when a program dies opens too. For ranks of this host
// (kernels/core/timeline.h says why their clocks agree) and for simulated ones. One owner, one
// thread.
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/timeline.h"

namespace annulus::bench {

class TraceFile {
 public:
  // ranks: names of world ranks 0, 1, ... InvalidArgument: the file cannot be written.
  static absl::StatusOr<std::unique_ptr<TraceFile>> create(const std::string& path,
                                                           std::span<const std::string> ranks);
  ~TraceFile();
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;

  // The next step, named; ranks[r]: of world rank r, in order of time in each lane. Ranks without
  // intervals are left out. Unavailable: the disk is full.
  absl::Status add_step(const std::string& name,
                        std::span<const std::vector<kernels::Interval>> ranks);

 private:
  explicit TraceFile(const std::string& path) : path_(path), out_(path) {}
  void add_compute(size_t rank, const std::string& name,
                   std::span<const kernels::Interval> intervals);
  void slice(size_t rank, int lane, const char* category, const std::string& name, int64_t begin_ns,
             int64_t end_ns, const std::string& args);
  void event(const std::string& fields);
  std::string time(int64_t ns) const;  // microseconds since the first step

  std::string path_;
  std::ofstream out_;
  bool first_ = true;
  int64_t origin_ns_ = -1, step_ = 0, flows_ = 0;
};

}  // namespace annulus::bench
