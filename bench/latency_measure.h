// SPDX-License-Identifier: Apache-2.0
// Measures one running server for `annulus-bench latency`. A point with miss rate m at length T is
// a session whose first T(1-m) tokens are cached and which is sent the whole prompt, so that T m
// are computed; then the session is rewound. Variants take turns, so that a machine that drifts
// drifts for all of them; the first turn warms up and is the one whose answer is checked. Time to
// the first token and between tokens are the client's; where the time went is what the ranks' own
// accounts (GetCluster) grew by. One thread; the server should have no other work.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench/client.h"
#include "bench/latency_row.h"

namespace annulus::bench {

struct LatencyPlan {
  std::vector<int64_t> lengths = {512, 1024, 2048};
  std::vector<double> misses = {1};
  std::vector<std::string> variants = {"auto"};
  int warmup = 1, repetitions = 5, output = 16;
  double timeout_s = 3600;  // of a request

  // Where one rank holds everything there is one variant.
  std::vector<std::string> variants_of(int cp) const;
  // Tokens to compute on a server of this layout: what progress is counted in.
  double tokens(int cp) const;
  nlohmann::json to_json() const;
};

// done: tokens of LatencyPlan::tokens so far.
using OnLatencyProgress = std::function<void(double done, const std::string& note)>;

// The rows of a point, as soon as it is measured.
using OnLatencyPoint = std::function<void(std::vector<LatencyRow> rows)>;

nlohmann::json describe(const std::string& address, const Served& served);

// OUT_OF_RANGE where a prompt and what is decoded behind it exceed the served context.
absl::Status check_fits(const LatencyPlan& plan, const Served& served);

// The plan must fit. The reference of a length is what comes first, hence points with everything
// missing come first.
absl::Status measure_latency(const Client& client, const Served& served, const LatencyPlan& plan,
                             const OnLatencyProgress& on_progress, const OnLatencyPoint& on_point);

}  // namespace annulus::bench
