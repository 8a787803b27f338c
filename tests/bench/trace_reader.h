// SPDX-License-Identifier: Apache-2.0
// A trace file, read back as a viewer does, and what must hold in every one, whatever the machine
// was doing: order and causality, never durations.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace annulus::testing {

struct TraceSlice {
  int rank = 0, lane = 0;  // 0: compute, 1: transfers
  std::string category, name;
  int64_t begin_ns = 0, end_ns = 0;
  int64_t step = -1, layer = -1, hop = -1;  // -1: not said
};

struct TraceClock {  // of a rank, as it was labelled last; error -1: it was not compared
  int64_t offset_ns = 0, error_ns = -1;
  int64_t largest_error_ns = -1;  // of all labels
};

struct TraceArrow {  // from a slice of transfers to another
  int sender = -1, receiver = -1;
  int64_t begin_ns = 0, end_ns = 0;
};

struct TraceContent {
  std::vector<std::string> ranks;  // names
  std::vector<TraceSlice> slices;
  std::map<int64_t, TraceArrow> arrows;
  std::map<int, TraceClock> clocks;

  std::vector<TraceSlice> of(int rank, const std::string& category,
                             const std::string& name = "") const;
};

// Fails the test where it is no trace.
TraceContent read_trace(const std::string& file);

// In every lane slices of a category follow each other and lie within those that are around them;
// every arrow has both ends, at two ranks, and nothing comes before it was sent; all ranks have the
// same steps.
void expect_sound(const TraceContent& trace);

// Every layer of a step: ring `name` makes each of its hops once on each rank, hop h + 1 starts
// before payload h is looked at and is there before payload h + 1 is.
void expect_overlapping_ring(const TraceContent& trace, int64_t step, const std::string& name,
                             int layers);

}  // namespace annulus::testing
