// SPDX-License-Identifier: Apache-2.0
// annulus-bench step, ring and policy on ranks as processes: their traces, their limits, and what
// they say to wrong input.
#include <gtest/gtest.h>

#include <filesystem>

#include "bench/server_process.h"
#include "tests/bench/trace_reader.h"
#include "tests/dist/command.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

namespace fs = std::filesystem;

Outcome annulus_bench(std::vector<std::string> arguments) {
  const fs::path build = fs::path(bench::annulus_binary()).parent_path().parent_path();
  arguments.insert(arguments.begin(), build / "bench" / "annulus-bench");
  return Process(std::move(arguments)).wait(60);
}

constexpr int kLayers = 2;  // of the tiny model

// Steps of a variant, in order.
std::vector<int64_t> steps_of(const TraceContent& trace, const std::string& variant) {
  std::vector<int64_t> found;
  for (const TraceSlice& step : trace.of(0, "step")) {
    if (step.name.find(variant) != std::string::npos) found.push_back(step.step);
  }
  return found;
}

// Over TCP a transfer needs this rank to move it along, so that no hop ends before the visit beside
// it has begun: transfer and attention overlap by the order of calls, however busy the machine is.
TEST(BenchStep, TracesEveryVariantOverTcp) {
  const std::string file = scratch_directory() + "/trace.json";
  const Outcome outcome =
      annulus_bench({"step", "--model", tiny_model_file(), "--cp", "3", "--transports", "tcp,self",
                     "--tokens", "250", "--cached", "301", "--steps", "full,partial,decode",
                     "--variants", "pass-kv,pass-q,gather-q", "--repeats", "1", "--trace", file});
  ASSERT_EQ(outcome.code, 0) << outcome.err << outcome.out;
  const TraceContent trace = read_trace(file);
  expect_sound(trace);
  EXPECT_EQ(trace.ranks.size(), 3u);
  // A step that warms up and one that counts, of 3 x 3; the cached tokens of 2 x 3 (by pass-KV).
  EXPECT_EQ(trace.of(2, "step").size(), 3u * 3 * 2 + 2 * 3);
  EXPECT_EQ(steps_of(trace, "pass-kv").size(), 3u * 2 + 2 * 3);
  for (const int64_t step : steps_of(trace, "pass-kv")) {
    expect_overlapping_ring(trace, step, "kv ring", kLayers);
  }
  for (const int64_t step : steps_of(trace, "new behind 301, pass-q")) {
    if (trace.of(0, "step").at(static_cast<size_t>(step - 1)).name.starts_with("250"))
      expect_overlapping_ring(trace, step, "q ring", kLayers);
  }
  const auto count = [&](int rank, int64_t step, const char* name) {
    int n = 0;
    for (const TraceSlice& one : trace.of(rank, "collective", name)) n += one.step == step;
    return n;
  };
  for (int rank = 0; rank < 3; ++rank) {
    for (const int64_t step : steps_of(trace, "gather-q")) {
      EXPECT_EQ(count(rank, step, "q gather"), kLayers);
      EXPECT_EQ(count(rank, step, "partials"), kLayers);
    }
    for (const int64_t step : steps_of(trace, "pass-kv"))
      EXPECT_EQ(count(rank, step, "partials"), 0);
  }
  for (const TraceSlice& hop : trace.of(0, "hop")) {
    EXPECT_LT(hop.begin_ns, hop.end_ns);
    bool beside = false;
    for (const TraceSlice& visit : trace.of(0, "phase", "attention")) {
      beside = beside ||
               (visit.step == hop.step && visit.layer == hop.layer && visit.hop == hop.hop - 1 &&
                visit.begin_ns < hop.end_ns && hop.begin_ns < visit.end_ns);
    }
    EXPECT_TRUE(beside) << hop.name << ", step " << hop.step << ", hop " << hop.hop;
  }
}

TEST(BenchStep, PrintsLimitAndFractionOfEveryOp) {
  const Outcome outcome =
      annulus_bench({"step", "--model", tiny_model_file(), "--tp", "2", "--cp", "2", "--tokens",
                     "96", "--cached", "64", "--batch", "2", "--repeats", "2"});
  ASSERT_EQ(outcome.code, 0) << outcome.err << outcome.out;
  for (const char* text :
       {"# limits of a rank, measured by all at once: multiply ", "full: 96 new behind 0, 2 seq",
        "partial: 96 new behind 64, 2 seq", "decode: 1 new behind 64, 2 seq", "  matmul gate, up ",
        "  attention ", "  wait, hops ", "  all ", "% hidden"}) {
    EXPECT_NE(outcome.out.find(text), std::string::npos) << text << " is not in\n" << outcome.out;
  }
}

TEST(BenchRing, TracesAndPrintsTheLeastTime) {
  const std::string file = scratch_directory() + "/trace.json";
  const Outcome outcome = annulus_bench({"ring", "--model", tiny_model_file(), "--cp", "2",
                                         "--tokens", "65", "--decode", "2", "--trace", file});
  ASSERT_EQ(outcome.code, 0) << outcome.err << outcome.out;
  EXPECT_NE(outcome.out.find("reached"), std::string::npos);
  const TraceContent trace = read_trace(file);
  expect_sound(trace);
  EXPECT_EQ(trace.of(1, "step").size(), 3u * (1 + 1 + 2));  // full, partial, decode
  expect_overlapping_ring(trace, 1, "kv ring", kLayers);
}

TEST(BenchPolicy, PrintsTheLeastTime) {
  const Outcome outcome = annulus_bench({"policy", "--model", tiny_model_file(), "--cp", "2",
                                         "--total", "128", "--miss", "10", "--repeats", "1"});
  ASSERT_EQ(outcome.code, 0) << outcome.err << outcome.out;
  EXPECT_NE(outcome.out.find("reached"), std::string::npos);
}

TEST(BenchStep, SaysInOneLineWhatIsWrong) {
  const auto expect_one_line = [](std::vector<std::string> arguments, const std::string& word) {
    arguments.insert(arguments.begin(), "step");
    const Outcome outcome = annulus_bench(std::move(arguments));
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
    EXPECT_NE(outcome.err.find(word), std::string::npos) << outcome.err;
  };
  const std::string model = tiny_model_file();
  expect_one_line({"--model", model, "--steps", "half"}, "half");
  expect_one_line({"--model", model, "--variants", "pass-k"}, "pass-k");
  expect_one_line({"--model", model, "--trace", "/nowhere/t.json"}, "/nowhere/t.json");
  expect_one_line({"--model", "/nowhere/model.gguf"}, "/nowhere/model.gguf");
  expect_one_line({"--model", model, "--tp", "3"}, "3");
  expect_one_line({}, "--model");
}

}  // namespace
}  // namespace annulus::testing
