// SPDX-License-Identifier: Apache-2.0
// annulus-bench latency and serve against a served engine of two ranks, and what they say to wrong
// input.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "bench/server_process.h"
#include "tests/dist/command.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

namespace fs = std::filesystem;

Outcome annulus_bench(std::vector<std::string> arguments) {
  const fs::path build = fs::path(bench::annulus_binary()).parent_path().parent_path();
  arguments.insert(arguments.begin(), build / "bench" / "annulus-bench");
  return Process(std::move(arguments)).wait();
}

nlohmann::json json_of(const std::string& file) {
  std::ifstream in(file);
  return nlohmann::json::parse(std::string(std::istreambuf_iterator<char>(in), {}), nullptr, false);
}

void expect_one_line(const Outcome& outcome, const std::string& word) {
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
  EXPECT_NE(outcome.err.find(word), std::string::npos) << outcome.err;
}

class BenchWithServer : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started =
        bench::ServerProcess::start({"--model", tiny_model_file(), "--cp", "2", "--threads", "1",
                                     "--precision", "fp32", "--debug-requests", "--profile"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = new bench::ServerProcess(*std::move(started));
  }
  static void TearDownTestSuite() { delete std::exchange(server_, nullptr); }
  void SetUp() override { ASSERT_NE(server_, nullptr); }

  static Outcome latency(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"latency", "--address", server_->address()});
    return annulus_bench(std::move(arguments));
  }

  static bench::ServerProcess* server_;
};
bench::ServerProcess* BenchWithServer::server_ = nullptr;

TEST_F(BenchWithServer, LatencyMeasuresEveryPointAndChecksEveryAnswer) {
  const std::string folder = scratch_directory();
  const Outcome outcome = latency({"--lengths", "64,201", "--miss", "0.05,1", "--variants",
                                   "auto,pass-kv,pass-q,gather-q", "--repetitions", "2", "--output",
                                   "3", "--json", folder + "/a.json", "--csv", folder + "/a.csv"});
  ASSERT_EQ(outcome.code, 0) << outcome.err << outcome.out;
  EXPECT_NE(outcome.out.find("# Wrong rows: 0 of 16 OK"), std::string::npos) << outcome.out;
  const nlohmann::json json = json_of(folder + "/a.json");
  ASSERT_EQ(json["rows"].size(), 16u);
  EXPECT_EQ(json["servers"][0]["ranks"].size(), 2u);
  for (const nlohmann::json& row : json["rows"]) {
    EXPECT_EQ(row["cp"], 2);
    EXPECT_TRUE(row["check"]["ok"]);
    EXPECT_EQ(row["cached"] > 0, row["miss"] < 1) << row;
    EXPECT_EQ(row["ttft_ms"]["samples"].size(), 2u);
    EXPECT_EQ(row["ttit_ms"]["samples"].size(), 3u);
    EXPECT_GT(row["ttft_ms"]["median"], 0);
    EXPECT_TRUE(row["variant"] == "auto" || row["chosen"] == row["variant"]) << row;
    // Parts add up to the steps; all of it is there.
    for (const char* phase : {"prefill", "decode"}) {
      const nlohmann::json& spent = row["breakdown_us"][phase];
      double sum = 0;
      for (const auto& [part, us] : spent.items()) sum += part == "steps" ? 0 : us.get<double>();
      EXPECT_NEAR(sum, spent["steps"], 0.02 * spent["steps"].get<double>() + 50) << row;
      EXPECT_GT(spent["attention"], 0);
      EXPECT_GT(spent["gemm"], 0);
    }
    const nlohmann::json& spent = row["breakdown_us"]["prefill"];
    if (row["chosen"] == "pass-kv") {
      EXPECT_EQ(spent["all_to_all"], 0) << row;
    }
    EXPECT_EQ(row["chosen"] == "gather-q" ? spent["sendrecv"] : spent["all_gather"], 0) << row;
  }
}

TEST_F(BenchWithServer, FiguresOfMergedRuns) {
  const std::string folder = scratch_directory();
  ASSERT_EQ(latency({"--lengths", "64", "--miss", "0.1,1", "--variants", "auto,pass-kv,pass-q",
                     "--repetitions", "1", "--output", "2", "--json", folder + "/cp2.json"})
                .code,
            0);
  const Outcome one = annulus_bench(
      {"latency", "--model", tiny_model_file(), "--lengths", "64", "--repetitions", "1", "--output",
       "2", "--json", folder + "/cp1.json", "--", "--threads", "1", "--precision", "fp32"});
  ASSERT_EQ(one.code, 0) << one.err;
  const Outcome figures = annulus_bench({"latency", "--from", folder + "/cp1.json",
                                         folder + "/cp2.json", "--plot", folder + "/figures"});
  if (figures.code == 2 && figures.err.find("matplotlib") != std::string::npos)
    GTEST_SKIP() << figures.err;
  ASSERT_EQ(figures.code, 0) << figures.err;
  for (const char* name : {"ttft_over_cp", "scaling_ratio", "ttit_over_cp", "miss_rate_tp1_cp2_64",
                           "breakdown_over_layouts", "breakdown_over_miss_rate"}) {
    for (const char* suffix : {".svg", ".png"}) {
      const fs::path file = fs::path(folder) / "figures" / (std::string(name) + suffix);
      ASSERT_TRUE(fs::exists(file)) << file;
      EXPECT_GT(fs::file_size(file), 5000u) << file;
    }
  }
}

TEST_F(BenchWithServer, ServeWritesWhatVllmWrites) {
  const std::string file = scratch_directory() + "/serve.json";
  for (const std::vector<std::string>& load :
       {std::vector<std::string>{"--concurrency", "2"}, {"--rate", "50"}}) {
    std::vector<std::string> arguments = {"serve",
                                          "--address",
                                          server_->address(),
                                          "--requests",
                                          "8",
                                          "--input-len",
                                          "8:32",
                                          "--output-len",
                                          "4",
                                          "--goodput",
                                          "ttft:60000",
                                          "--json",
                                          file};
    arguments.insert(arguments.end(), load.begin(), load.end());
    const Outcome outcome = annulus_bench(arguments);
    ASSERT_EQ(outcome.code, 0) << outcome.err << outcome.out;
    const nlohmann::json json = json_of(file);
    EXPECT_EQ(json["completed"], 8);
    EXPECT_EQ(json["failed"], 0);
    EXPECT_EQ(json["total_output_tokens"], 32);
    EXPECT_EQ(json["itls"].size(), 8u);
    EXPECT_EQ(json["itls"][0].size(), 3u);
    EXPECT_GT(json["p99_e2el_ms"], 0);
    EXPECT_NEAR(json["request_goodput"].get<double>(), json["request_throughput"].get<double>(),
                1e-9);
  }
}

TEST_F(BenchWithServer, WhatTheServerCannotDoIsOneLine) {
  expect_one_line(latency({"--lengths", "100000"}), "served context");
  expect_one_line(annulus_bench({"serve", "--address", server_->address(), "--input-len", "9999"}),
                  "served context");
  auto plain =
      bench::ServerProcess::start({"--model", tiny_model_file(), "--cp", "2", "--threads", "1"});
  ASSERT_TRUE(plain.ok()) << plain.status();
  expect_one_line(annulus_bench({"latency", "--address", plain->address(), "--lengths", "32",
                                 "--variants", "pass-q"}),
                  "--debug-requests");
}

TEST(BenchFlags, WrongOnesAreOneLine) {
  expect_one_line(annulus_bench({"latency"}), "--address");
  expect_one_line(annulus_bench({"latency", "--address", "127.0.0.1:1", "--variants", "magic"}),
                  "magic");
  for (const char* miss : {"0", "-0.1", "1.5", "nan", "many"})
    expect_one_line(annulus_bench({"latency", "--address", "127.0.0.1:1", "--miss", miss}),
                    "--miss");
  expect_one_line(annulus_bench({"latency", "--address", "127.0.0.1:1", "--lengths", "0"}),
                  "--lengths");
  expect_one_line(annulus_bench({"latency", "--from", "/nowhere.json"}), "/nowhere.json");
  expect_one_line(annulus_bench({"latency", "--address", "127.0.0.1:1", "--", "--tp", "2"}),
                  "--model");
  expect_one_line(
      annulus_bench({"latency", "--address", "127.0.0.1:1", "--json", "/nowhere/a.json"}),
      "/nowhere/a.json");
  expect_one_line(annulus_bench({"serve"}), "--address");
  expect_one_line(annulus_bench({"serve", "--address", "127.0.0.1:1", "--rate", "nan"}), "--rate");
  expect_one_line(annulus_bench({"serve", "--address", "127.0.0.1:1", "--input-len", "9:3"}),
                  "--input-len");
  expect_one_line(annulus_bench({"serve", "--address", "127.0.0.1:1", "--goodput", "ttft:x"}),
                  "ttft:x");
}

TEST(BenchFlags, NobodyThereIsOneLine) {
  expect_one_line(annulus_bench({"latency", "--address", "127.0.0.1:1"}), "annulus serve");
  expect_one_line(annulus_bench({"serve", "--address", "127.0.0.1:1"}), "annulus serve");
  expect_one_line(annulus_bench({"latency", "--model", "/nowhere.gguf"}), "/nowhere.gguf");
  // A figure that cannot be drawn is said before anything is measured.
  expect_one_line(annulus_bench({"latency", "--address", "127.0.0.1:1", "--plot", "x", "--python",
                                 "/bin/false"}),
                  "matplotlib");
}

}  // namespace
}  // namespace annulus::testing
