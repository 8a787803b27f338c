// SPDX-License-Identifier: Apache-2.0
#include "bench/serve_metrics.h"

#include <gtest/gtest.h>

namespace annulus::bench {
namespace {

ServedRequest request(int input, double ttft_s, std::vector<double> gaps_s) {
  ServedRequest out;
  out.input_tokens = input;
  out.output_tokens = static_cast<int>(gaps_s.size()) + 1;
  out.ttft_s = out.e2el_s = ttft_s;
  for (const double gap_s : gaps_s) out.e2el_s += gap_s;
  out.gaps_s = std::move(gaps_s);
  out.error = "";
  return out;
}

TEST(ServeMetrics, FormulasAreThoseOfVllm) {
  const std::vector<ServedRequest> requests = {request(100, 0.1, {0.01, 0.03}),
                                               request(50, 0.3, {0.02})};
  const nlohmann::json m = serve_metrics(requests, 2, {50, 99}, {});
  EXPECT_EQ(m["completed"], 2);
  EXPECT_EQ(m["failed"], 0);
  EXPECT_EQ(m["total_input_tokens"], 150);
  EXPECT_EQ(m["total_output_tokens"], 5);
  EXPECT_DOUBLE_EQ(m["request_throughput"], 1);
  EXPECT_DOUBLE_EQ(m["output_throughput"], 2.5);
  EXPECT_DOUBLE_EQ(m["total_token_throughput"], 77.5);
  EXPECT_TRUE(m["request_goodput"].is_null());
  EXPECT_NEAR(m["mean_ttft_ms"], 200, 1e-9);
  EXPECT_NEAR(m["median_ttft_ms"], 200, 1e-9);
  EXPECT_NEAR(m["std_ttft_ms"], 100, 1e-9);
  EXPECT_NEAR(m["p99_ttft_ms"], 298, 1e-9);
  EXPECT_NEAR(m["mean_tpot_ms"], 20, 1e-9);  // of requests: (10 + 30) / 2 and 20
  EXPECT_NEAR(m["mean_itl_ms"], 20, 1e-9);   // of gaps
  EXPECT_NEAR(m["median_e2el_ms"], 230, 1e-9);
  EXPECT_EQ(m["itls"][0].size(), 2u);
  EXPECT_EQ(m["input_lens"], (std::vector<int>{100, 50}));
}

TEST(ServeMetrics, WhatFailedCountsAsFailedAndNowhereElse) {
  ServedRequest failed = request(1000, 9, {9});
  failed.error = "UNAVAILABLE: gone";
  const nlohmann::json m = serve_metrics({request(10, 0.1, {}), failed}, 1, {99}, {});
  EXPECT_EQ(m["completed"], 1);
  EXPECT_EQ(m["failed"], 1);
  EXPECT_EQ(m["total_input_tokens"], 10);
  EXPECT_NEAR(m["p99_ttft_ms"], 100, 1e-9);
  EXPECT_DOUBLE_EQ(m["mean_tpot_ms"], 0);  // one token has no gap
  EXPECT_EQ(m["errors"], (std::vector<std::string>{"", "UNAVAILABLE: gone"}));
  EXPECT_EQ(m["output_lens"], (std::vector<int>{1, 0}));
}

TEST(ServeMetrics, NothingAtAllIsZeros) {
  const nlohmann::json m = serve_metrics({}, 0, {50, 99.9}, {});
  EXPECT_EQ(m["completed"], 0);
  EXPECT_DOUBLE_EQ(m["request_throughput"], 0);
  EXPECT_DOUBLE_EQ(m["p99.9_itl_ms"], 0);
  EXPECT_NE(metrics_text(m, {50, 99.9}).find("p99.9"), std::string::npos);
}

TEST(ServeMetrics, GoodputCountsRequestsWithinEveryLimit) {
  const auto limits = parse_goodput({"ttft:200", "tpot:25"});
  ASSERT_TRUE(limits.ok());
  const nlohmann::json m = serve_metrics(
      {request(1, 0.1, {0.01}), request(1, 0.3, {0.01}), request(1, 0.1, {0.04})}, 2, {}, *limits);
  EXPECT_DOUBLE_EQ(m["request_goodput"], 0.5);
  for (const char* wrong : {"ttft", "ttft:", "ttft:-1", "ttft:nan", "speed:3", ""})
    EXPECT_FALSE(parse_goodput({wrong}).ok()) << wrong;
}

}  // namespace
}  // namespace annulus::bench
