// SPDX-License-Identifier: Apache-2.0
// `annulus serve --trace`, with a rank whose clock is another host's: a time namespace shifts it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/bench/trace_reader.h"
#include "tests/dist/cluster.h"

namespace annulus::testing {
namespace {

constexpr int64_t kShift_s = 5000;

// What a command begins with whose monotonic clock is kShift_s ahead.
std::vector<std::string> with_another_clock() {
  std::vector<std::string> out = {"unshare"};
  if (geteuid() != 0) out.insert(out.end(), {"--user", "--map-root-user"});
  out.insert(out.end(), {"--time", "--monotonic", std::to_string(kShift_s), "--fork",
                         "--kill-child=KILL", "--"});
  return out;
}

bool clocks_can_be_shifted() {
  std::string command;
  for (const std::string& word : with_another_clock()) command += word + " ";
  return std::system((command + "true 2>/dev/null").c_str()) == 0;  // NOLINT(concurrency-mt-unsafe)
}

TEST(ServeTrace, RanksWithDifferentClocksAreOnOne) {
  if (!clocks_can_be_shifted()) GTEST_SKIP() << "no time namespaces here: this needs root";
  const std::string file = ::testing::TempDir() + "/serve-trace-" + std::to_string(getpid());
  std::vector<uint32_t> plain, traced;
  ClusterOptions options;
  options.model = tiny_model_file();
  options.serve_flags = {"--precision", "fp32"};
  {
    Cluster cluster(options);
    plain = cluster.answer("a ring of three", 12);
  }
  options.serve_flags.insert(options.serve_flags.end(), {"--trace", file});
  options.prefix = [](int rank) {
    return rank == 1 ? with_another_clock() : std::vector<std::string>();
  };
  {
    Cluster cluster(options);
    traced = cluster.answer("a ring of three", 12);
    cluster.front().signal(SIGTERM);
    EXPECT_EQ(cluster.front().wait().code, 0);
  }
  EXPECT_EQ(traced, plain);

  const TraceContent trace = read_trace(file);
  std::remove(file.c_str());
  ASSERT_EQ(trace.ranks.size(), 2u);
  ASSERT_EQ(trace.clocks.count(0), 1u);
  ASSERT_EQ(trace.clocks.count(1), 1u);
  const auto [same, same_error, same_largest] = trace.clocks.at(0);
  const auto [shifted, error, largest] = trace.clocks.at(1);
  EXPECT_EQ(same, 0);
  EXPECT_LT(same_error, 100'000'000);
  EXPECT_LE(std::abs(shifted - kShift_s * 1'000'000'000), error);
  EXPECT_LT(error, 100'000'000);

  // Times were shifted by earlier estimates too: twice the worst, and both of its ends.
  const int64_t slack = 4 * (largest + same_largest);
  const auto steps = trace.of(0, "step"), others = trace.of(1, "step");
  ASSERT_EQ(steps.size(), others.size());
  ASSERT_GE(steps.size(), 12u);
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i].name, others[i].name);
    EXPECT_LT(others[i].begin_ns, steps[i].end_ns + slack);  // they work at the same time
    EXPECT_GT(others[i].end_ns, steps[i].begin_ns - slack);
  }
  EXPECT_FALSE(trace.arrows.empty());
  for (const auto& [id, arrow] : trace.arrows) {
    EXPECT_NE(arrow.sender, arrow.receiver);
    EXPECT_GT(arrow.end_ns + slack, arrow.begin_ns) << id;
  }
}

TEST(ServeTrace, AFileThatCannotBeWrittenIsRefused) {
  const Outcome outcome =
      annulus({"serve", "--model", tiny_model_file(), "--port", "0", "--trace", "/nowhere/t.json"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("--trace: cannot write /nowhere/t.json"), std::string::npos)
      << outcome.err;
}

}  // namespace
}  // namespace annulus::testing
