// SPDX-License-Identifier: Apache-2.0
// Properties of the cost model over random machines, shapes and loads.
#include <gtest/gtest.h>

#include <cmath>

#include "parallel/ring_policy.h"
#include "plans.h"

namespace annulus::parallel {
namespace {

using testing::Random;

double log_uniform(Random& random, double low, double high) {
  const double u = (random.real() + 10) / 20;
  return low * std::pow(high / low, u);
}

PolicyInput random_input(Random& random) {
  PolicyInput in;
  in.shape.kv_heads = random.in32(1, 8);
  in.shape.heads = in.shape.kv_heads * random.in32(1, 16);
  in.shape.head_dim = random.coin() ? 64 : 128;
  in.shape.layers = random.in32(1, 126);
  in.shape.dtype = random.coin() ? kernels::DType::kBF16 : kernels::DType::kF32;
  in.cp = random.in32(1, 16);
  in.profile = {.attend_flops_per_us = log_uniform(random, 1e3, 1e9),
                .kv_read_bytes_per_us = log_uniform(random, 1e3, 3e6),
                .attend_overhead_us = log_uniform(random, 0.1, 50),
                .link_bytes_per_us = log_uniform(random, 10, 1e6),
                .link_latency_us = log_uniform(random, 0.5, 200),
                .merge_bytes_per_us = log_uniform(random, 1e3, 1e6),
                .pack_bytes_per_us = log_uniform(random, 1e3, 1e6),
                .overlap = random.coin() ? 1.0 : log_uniform(random, 0.01, 1),
                .hop_overhead_us = random.coin() ? 0.0 : log_uniform(random, 0.1, 2000),
                .collective_overhead_us = log_uniform(random, 0.5, 500),
                .collective_bytes_per_us = log_uniform(random, 10, 1e6),
                .op_overhead_us = random.coin() ? 0.0 : log_uniform(random, 0.1, 20)};
  in.workspace_limit_bytes = int64_t{1} << random.in(10, 32);
  return in;
}

std::vector<Load> random_loads(Random& random) {
  std::vector<Load> loads(static_cast<size_t>(random.in(1, 12)));
  for (Load& load : loads) {
    const auto size = [&](double most) {
      return static_cast<int64_t>(log_uniform(random, 1, most));
    };
    load = {random.in(0, 2) == 0 ? 1 : size(1e5), random.coin() ? 0 : size(1e6)};
  }
  return loads;
}

TEST(RingPolicySearch, PredictionsAreSaneAndRepeat) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const PolicyInput in = random_input(random);
    const auto loads = random_loads(random);
    const auto p = predict(in, loads), again = predict(in, loads);
    for (size_t v = 0; v < kVariants; ++v) {
      ASSERT_EQ(p[v].variant, static_cast<Variant>(v));
      ASSERT_TRUE(std::isfinite(p[v].us) && p[v].us > 0);
      ASSERT_GE(p[v].exposed_us, 0);
      ASSERT_DOUBLE_EQ(p[v].us, p[v].attend_us + p[v].exposed_us);
      ASSERT_GE(p[v].bytes_sent, 0);
      ASSERT_EQ(p[v].fits, p[v].workspace_bytes <= in.workspace_limit_bytes);
      ASSERT_GE(p[v].blocks, 1);
      ASSERT_EQ(p[v].us, again[v].us);
    }
    const Variant chosen = choose(in, loads);
    const Prediction& c = p[static_cast<size_t>(chosen)];
    for (const Prediction& other : p) {
      if (in.cp > 1 && c.fits && other.fits) {
        ASSERT_LE(c.us, other.us);
      }
      if (other.fits && in.cp > 1) {
        ASSERT_TRUE(c.fits);
      }
    }
    ASSERT_EQ(make_groups(in, loads), make_groups(in, loads));
  }
}

// More work, a slower link or a slower machine never costs less.
TEST(RingPolicySearch, CostsAreMonotonic) {
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    PolicyInput in = random_input(random);
    in.workspace_limit_bytes = int64_t{1} << 40;
    const auto loads = random_loads(random);
    const auto base = predict(in, loads);
    const auto expect_dearer = [&](const PolicyInput& other, const std::vector<Load>& more,
                                   const char* what) {
      const auto p = predict(other, more);
      for (size_t v = 0; v < kVariants; ++v) {
        // A longer visit hides more of a hop, never more than it adds: equal up to rounding.
        ASSERT_GE(p[v].us, base[v].us * (1 - 1e-12)) << what << ", " << name(base[v].variant);
      }
    };
    auto more = loads;
    more[0].n_cached += random.in(1, 5000);
    expect_dearer(in, more, "more cached");
    more = loads;
    more.push_back({random.in(1, 300), random.in(0, 3000)});
    expect_dearer(in, more, "another item");
    PolicyInput worse = in;
    worse.profile.link_bytes_per_us /= 3;
    expect_dearer(worse, loads, "slower link");
    worse = in;
    worse.profile.link_latency_us *= 3;
    expect_dearer(worse, loads, "higher latency");
    worse = in;
    worse.profile.hop_overhead_us = 3 * in.profile.hop_overhead_us + 1;
    expect_dearer(worse, loads, "dearer hops");
    worse = in;
    worse.profile.collective_overhead_us *= 3;
    expect_dearer(worse, loads, "dearer collectives");
    worse = in;
    worse.profile.collective_bytes_per_us /= 3;
    expect_dearer(worse, loads, "slower collectives");
    worse = in;
    worse.profile.op_overhead_us = 3 * in.profile.op_overhead_us + 1;
    expect_dearer(worse, loads, "dearer ops");
    worse = in;
    worse.profile.attend_flops_per_us /= 3;
    expect_dearer(worse, loads, "slower attention");
    worse = in;
    worse.profile.overlap /= 2;
    expect_dearer(worse, loads, "less overlap");
  }
}

TEST(RingPolicySearch, FreeNetworkHidesAllHops) {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    PolicyInput in = random_input(random);
    in.profile.link_bytes_per_us = in.profile.collective_bytes_per_us = 1e15;
    in.profile.link_latency_us = in.profile.hop_overhead_us = 0;
    in.profile.collective_overhead_us = 0;
    for (const Prediction& p : predict(in, random_loads(random))) {
      ASSERT_LE(p.exposed_us, 1e-6 * p.us);
    }
  }
}

TEST(RingPolicySearch, BlocksKeepTheWorkspaceBound) {
  Random random(4);
  for (int round = 0; round < 2000; ++round) {
    const PolicyInput in = random_input(random);
    const auto loads = random_loads(random);
    for (const Variant variant : {Variant::kPassQ, Variant::kGatherQ}) {
      const int64_t rows = rows_per_block(in, variant, 1000);
      ASSERT_GE(rows, 1);
      const Prediction p = predict(in, loads)[static_cast<size_t>(variant)];
      // Too large only where a single row is.
      if (!p.fits) {
        ASSERT_EQ(rows, 1);
      }
      PolicyInput wide = in;
      wide.workspace_limit_bytes = int64_t{1} << 50;
      const Prediction uncut = predict(wide, loads)[static_cast<size_t>(variant)];
      ASSERT_EQ(uncut.blocks, 1);
      ASSERT_LE(uncut.us, p.us * (1 + 1e-12)) << "blocks never gain";
      ASSERT_LE(p.workspace_bytes, uncut.workspace_bytes);
    }
    ASSERT_EQ(rows_per_block(in, Variant::kPassKv, 1000), INT64_MAX);
  }
}

TEST(RingPolicySearch, TheSmallestWhereNothingFits) {
  PolicyInput in;
  in.shape = {16, 1, 128, 1, kernels::DType::kBF16};
  in.cp = 4;
  in.workspace_limit_bytes = 1;
  const Load load = {100, 1000};
  const auto predictions = predict(in, {&load, 1});
  const int64_t chosen = predictions[static_cast<size_t>(choose(in, {&load, 1}))].workspace_bytes;
  for (const Prediction& p : predictions) {
    EXPECT_FALSE(p.fits);
    EXPECT_LE(chosen, p.workspace_bytes);
  }
}

// At the chunk found hops hide, half of it later they do not; multiples of 2 N, at least `least`.
TEST(RingPolicySearch, SmallestChunkHidesItsHops) {
  Random random(5);
  for (int round = 0; round < 500; ++round) {
    PolicyInput in = random_input(random);
    in.profile.overlap = 1;
    const int64_t cached = random.coin() ? 0 : random.in(1, 1000000), least = random.in(1, 600);
    const int64_t chunk = smallest_efficient_chunk(in, cached, least);
    ASSERT_EQ(chunk % (2 * in.cp), 0);
    ASSERT_GE(chunk, least);
    if (in.cp == 1) {
      ASSERT_LE(chunk, least + 1);
    }
    const Load load = {chunk, cached};
    const auto p = predict(in, {&load, 1});
    const Prediction& chosen = p[static_cast<size_t>(choose(in, {&load, 1}))];
    // pass-KV hides everything but the ranks' own time; pass-Q all that and its all-to-all.
    if (chosen.variant == Variant::kPassKv && p[0].fits && in.cp > 1) {
      const double own = in.shape.layers * (in.cp - 1) * in.profile.hop_overhead_us;
      ASSERT_NEAR(p[0].exposed_us, own, 1e-9 * p[0].us) << chunk;
    }
  }
}

// Eq. 2 (T >= N C N_KV e / (2 N_H BW)) holds for chunks much shorter than the cache; a full prefill
// needs twice that under the causal mask.
TEST(RingPolicySearch, SmallestChunkAgreesWithEquation2) {
  PolicyInput in;
  in.shape = {16, 16, 128, 1, kernels::DType::kBF16};  // MHA; merges so slow that pass-Q is out
  in.cp = 4;
  in.profile = {.attend_flops_per_us = 540e6,
                .kv_read_bytes_per_us = 1e12,
                .attend_overhead_us = 0,
                .link_bytes_per_us = 400e3,
                .link_latency_us = 0,
                .merge_bytes_per_us = 1e-3,
                .pack_bytes_per_us = 1e12,
                .overlap = 1};
  in.workspace_limit_bytes = int64_t{1} << 50;
  const double bound = 4 * 540e6 * 16 * 2 / (2 * 16 * 400e3);  // 5400
  EXPECT_NEAR(static_cast<double>(smallest_efficient_chunk(in, 10000000, 1)), bound, 0.01 * bound);
  EXPECT_NEAR(static_cast<double>(smallest_efficient_chunk(in, 0, 1)), 2 * bound, 0.01 * bound);
}

}  // namespace
}  // namespace annulus::parallel
