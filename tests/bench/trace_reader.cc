// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/trace_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace annulus::testing {
namespace {

int64_t nanoseconds(const nlohmann::json& us) {
  return std::llround(us.get<double>() * 1e3);
}

int64_t said(const nlohmann::json& args, const char* key) {
  return args.contains(key) ? args[key].get<int64_t>() : -1;
}

}  // namespace

std::vector<TraceSlice> TraceContent::of(int rank, const std::string& category,
                                         const std::string& name) const {
  std::vector<TraceSlice> found;
  for (const TraceSlice& slice : slices) {
    if (slice.rank == rank && slice.category == category && (name.empty() || slice.name == name))
      found.push_back(slice);
  }
  return found;
}

TraceContent read_trace(const std::string& file) {
  TraceContent trace;
  std::ifstream in(file);
  const nlohmann::json json =
      nlohmann::json::parse(std::string(std::istreambuf_iterator<char>(in), {}), nullptr, false);
  if (!json.is_array()) {
    ADD_FAILURE() << file << " is no JSON array";
    return trace;
  }
  for (const nlohmann::json& event : json) {
    const std::string kind = event.at("ph");
    const int pid = event.at("pid");
    if (kind == "M") {
      if (event.at("name") == "process_name") trace.ranks.push_back(event.at("args").at("name"));
      if (event.at("name") == "process_labels") {
        const int64_t error = said(event.at("args"), "clock_error_ns");
        const int64_t largest = std::max(trace.clocks[pid].largest_error_ns, error);
        trace.clocks[pid] = {said(event.at("args"), "clock_offset_ns"), error, largest};
      }
    } else if (kind == "X") {
      const nlohmann::json& args = event.at("args");
      const int64_t begin = nanoseconds(event.at("ts")), duration = nanoseconds(event.at("dur"));
      EXPECT_GE(duration, 0) << event;
      trace.slices.push_back({pid, event.at("tid"), event.at("cat"), event.at("name"), begin,
                              begin + duration, said(args, "step"), said(args, "layer"),
                              said(args, "hop")});
    } else {
      TraceArrow& arrow = trace.arrows[event.at("id")];
      const bool begins = kind == "s";
      EXPECT_TRUE(begins || kind == "f") << event;
      int& end = begins ? arrow.sender : arrow.receiver;
      EXPECT_EQ(end, -1) << "two ends: " << event;
      end = pid;
      (begins ? arrow.begin_ns : arrow.end_ns) = nanoseconds(event.at("ts"));
    }
  }
  return trace;
}

void expect_sound(const TraceContent& trace) {
  ASSERT_FALSE(trace.slices.empty());
  const auto ranks = static_cast<int>(trace.ranks.size());
  const std::map<std::string, std::string> parent = {{"phase", "step"}, {"layer", "step"}};
  std::vector<std::string> steps_of_rank_0;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<std::string> steps;
    for (const TraceSlice& step : trace.of(rank, "step")) steps.push_back(step.name);
    if (rank == 0) steps_of_rank_0 = steps;
    EXPECT_EQ(steps, steps_of_rank_0) << "rank " << rank;
    // hop and collective share the lane of transfers.
    std::map<std::string, int64_t> end;
    for (const TraceSlice& slice : trace.slices) {
      if (slice.rank != rank) continue;
      const bool moves = slice.lane == 1;
      int64_t& last =
          end.try_emplace(moves ? "transfers" : slice.category, INT64_MIN).first->second;
      ASSERT_LE(last, slice.begin_ns) << slice.category << " " << slice.name << ", rank " << rank;
      last = slice.end_ns;
    }
    const auto steps_there = trace.of(rank, "step");
    for (const TraceSlice& slice : trace.slices) {
      if (slice.rank != rank || slice.category == "step") continue;
      const TraceSlice& step = steps_there.at(static_cast<size_t>(slice.step - 1));
      EXPECT_GE(slice.begin_ns, step.begin_ns) << slice.name;
      EXPECT_LE(slice.end_ns, step.end_ns) << slice.name;
    }
    // A phase of a layer lies in that layer's slice.
    std::map<std::pair<int64_t, int64_t>, TraceSlice> layers;
    for (const TraceSlice& layer : trace.of(rank, "layer"))
      EXPECT_TRUE(layers.try_emplace({layer.step, layer.layer}, layer).second) << layer.name;
    for (const TraceSlice& phase : trace.of(rank, "phase")) {
      if (phase.layer < 0) continue;
      const auto layer = layers.find({phase.step, phase.layer});
      ASSERT_NE(layer, layers.end());
      EXPECT_GE(phase.begin_ns, layer->second.begin_ns);
      EXPECT_LE(phase.end_ns, layer->second.end_ns);
    }
  }
  for (const auto& [id, arrow] : trace.arrows) {
    ASSERT_GE(arrow.sender, 0) << id;
    ASSERT_GE(arrow.receiver, 0) << id;
    EXPECT_NE(arrow.sender, arrow.receiver);
    EXPECT_GE(arrow.end_ns, arrow.begin_ns) << "comes before it was sent: " << id;
  }
}

void expect_overlapping_ring(const TraceContent& trace, int64_t step, const std::string& name,
                             int layers) {
  const auto ranks = static_cast<int>(trace.ranks.size());
  for (int rank = 0; rank < ranks; ++rank) {
    std::map<std::pair<int64_t, int64_t>, TraceSlice> hops, visits;  // layer, hop
    for (const TraceSlice& hop : trace.of(rank, "hop", name)) {
      if (hop.step != step) continue;
      EXPECT_TRUE(hops.try_emplace({hop.layer, hop.hop}, hop).second) << "a hop made twice";
    }
    for (const TraceSlice& visit : trace.of(rank, "phase", "attention")) {
      if (visit.step != step || visit.hop < 0) continue;
      EXPECT_TRUE(visits.try_emplace({visit.layer, visit.hop}, visit).second) << "looked at twice";
    }
    EXPECT_EQ(hops.size(), static_cast<size_t>(layers * (ranks - 1)));
    EXPECT_EQ(visits.size(), static_cast<size_t>(layers * ranks));
    for (int layer = 0; layer < layers; ++layer) {
      for (int hop = 1; hop < ranks; ++hop) {
        SCOPED_TRACE(::testing::Message()
                     << "rank " << rank << ", layer " << layer << ", hop " << hop);
        const auto flight = hops.find({layer, hop});
        const auto beside = visits.find({layer, hop - 1}), behind = visits.find({layer, hop});
        ASSERT_TRUE(flight != hops.end() && beside != visits.end() && behind != visits.end());
        EXPECT_LE(flight->second.begin_ns, beside->second.begin_ns);
        EXPECT_LE(flight->second.end_ns, behind->second.begin_ns);
      }
    }
  }
}

}  // namespace annulus::testing
