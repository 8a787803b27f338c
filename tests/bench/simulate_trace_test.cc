// SPDX-License-Identifier: Apache-2.0
// Traces in virtual time hold what those of real ranks do, and say what the replay says.
#include <gtest/gtest.h>

#include <algorithm>

#include "bench/simulate_engine.h"
#include "server/trace_file.h"
#include "tests/bench/trace_reader.h"
#include "tests/support/tiny_model.h"

namespace annulus::bench {
namespace {

constexpr parallel::Topology kTopology{8, 3};

// Simulates with a trace, and without: times must not depend on it.
testing::TraceContent traced(const Workload& work, Simulated& simulated) {
  const std::string file = testing::scratch_directory() + "/trace.json";
  const SimModel model = sim_model("llama-8b").value();
  const Machine machine = load_machine("h100-ndr").value();
  {
    const std::vector<std::string> names = {"0", "1", "2"};
    const auto trace = server::TraceFile::create(file, names).value();
    simulated = simulate(model, machine, kTopology, work, false, trace.get()).value();
  }
  const Simulated plain = simulate(model, machine, kTopology, work).value();
  EXPECT_NEAR(plain.ttft_us(), simulated.ttft_us(), 1e-6 * plain.ttft_us());
  EXPECT_NEAR(plain.ttit_us(), simulated.ttit_us(), 1e-6 * plain.ttit_us());
  return testing::read_trace(file);
}

TEST(SimulatedTrace, RingsOverlapAndStepsEndWhenTheReplaySays) {
  Workload work;
  work.prompt = 50'000;
  work.answer = 3;
  work.variant = parallel::Variant::kPassKv;
  Simulated simulated;
  const testing::TraceContent trace = traced(work, simulated);
  testing::expect_sound(trace);
  testing::expect_overlapping_ring(trace, 1, "ring", simulated.layers);
  ASSERT_EQ(trace.of(0, "step").size(), 3u);
  int64_t end = 0;
  for (int rank = 0; rank < 3; ++rank) end = std::max(end, trace.of(rank, "step").at(0).end_ns);
  EXPECT_NEAR(static_cast<double>(end), simulated.ttft_us() * 1e3, 1);
  // Every layer's linear work is there, with the same time in each.
  const auto linear = trace.of(1, "phase", "matmul");
  EXPECT_GE(linear.size(), static_cast<size_t>(3 * simulated.layers));
}

TEST(SimulatedTrace, PassQReturnsPartialsOnceALayer) {
  Workload work;
  work.cached = 40'000;
  work.prompt = 1'000;
  work.variant = parallel::Variant::kPassQ;
  Simulated simulated;
  const testing::TraceContent trace = traced(work, simulated);
  testing::expect_sound(trace);
  testing::expect_overlapping_ring(trace, 1, "ring", simulated.layers);
  for (int rank = 0; rank < 3; ++rank) {
    const auto returns = trace.of(rank, "collective");
    std::vector<int> of_layer(static_cast<size_t>(simulated.layers), 0);
    for (const testing::TraceSlice& one : returns) ++of_layer.at(static_cast<size_t>(one.layer));
    for (const int count : of_layer) EXPECT_GE(count, 1);
    EXPECT_EQ(trace.of(rank, "phase", "merge").size(), static_cast<size_t>(simulated.layers));
  }
}

TEST(SimulatedTrace, RefusesWhatNoViewerOpens) {
  Workload work;
  work.prompt = 200'000;
  const std::string file = testing::scratch_directory() + "/trace.json";
  const auto trace = server::TraceFile::create(file, {}).value();
  const auto done = simulate(sim_model("llama-405b").value(), load_machine("h100-ndr").value(),
                             {8, 128}, work, false, trace.get());
  EXPECT_EQ(done.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(done.status().message().find("--trace"), std::string::npos) << done.status();
}

}  // namespace
}  // namespace annulus::bench
