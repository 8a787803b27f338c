// SPDX-License-Identifier: Apache-2.0
// Virtual time: rotate() and collectives of the engine with known costs end when arithmetic says,
// a repeated layer stands for all, and pairs are counted as positions say.
#include <gtest/gtest.h>

#include <random>

#include "bench/simulate_engine.h"
#include "bench/simulate_recorder.h"
#include "bench/simulate_replay.h"
#include "parallel/ring.h"

namespace annulus::bench {
namespace {

using kernels::VirtualQueue;
using parallel::Topology;

// A rank a node; a hop holds the queue up for 2 us and flies for 10 us + 1 us per 1000 bytes.
Machine simple_machine() {
  Machine m;
  m.gpus_per_node = m.nics_per_node = 1;
  m.memory_gb = 80;
  m.attend_tflops = m.gemm_16bit_tflops = m.gemm_8bit_tflops = 100;
  m.kv_read_gb_s = m.weight_read_gb_s = m.rows_gb_s = 1000;
  m.local_gb_s = m.all_reduce_gb_s = 100;
  m.net_gb_s = 1;
  m.net_us = 10;
  m.hop_us = 2;
  m.overlap = 1;
  m.collective_gb_s = 1;
  m.collective_us = 7;
  m.activation_bytes = m.partial_bytes = 4;
  return m;
}

// rotate() over `bytes`, a rank each; a visit takes visit_us[rank].
StepTimes rotated(const Machine& machine, const std::vector<int64_t>& bytes,
                  const std::vector<double>& visit_us) {
  const auto cp = static_cast<int32_t>(bytes.size());
  Cost cost(machine, {1, cp});
  std::vector<RankTrace> traces;
  for (int32_t r = 0; r < cp; ++r) {
    Recorder recorder(cost, {1, cp}, r);
    VirtualQueue queue(&recorder);
    recorder.begin_step();
    const int64_t most = *std::max_element(bytes.begin(), bytes.end());
    const auto room = [&](int64_t n) {
      return parallel::Bytes{queue.scratch<std::byte>(n), static_cast<size_t>(n)};
    };
    int32_t visits = 0;
    parallel::rotate(*recorder.groups().cp, queue, room(bytes[static_cast<size_t>(r)]), bytes,
                     {{room(most), room(most)}}, {}, [&](int32_t origin, parallel::ConstBytes) {
                       EXPECT_EQ(origin, (r + cp - visits) % cp);
                       ++visits;
                       recorder.work(Share::kAttend, visit_us[static_cast<size_t>(r)]);
                     });
    EXPECT_EQ(visits, cp);
    traces.push_back({recorder.take(), 1});
  }
  return replay(traces);
}

TEST(VirtualTime, AHopHidesBehindALongVisit) {
  // Three visits of 50, two starts of 2; 10 + 5 in flight is less than a visit.
  const StepTimes times = rotated(simple_machine(), {5000, 5000, 5000}, {50, 50, 50});
  for (const double us : times.rank_us) EXPECT_NEAR(us, 3 * 50 + 2 * 2, 1e-9);
  EXPECT_NEAR(of(times.mean, Share::kWait), 0, 1e-9);
  EXPECT_NEAR(times.transfer_us, 2 * (2 + 15), 1e-9);
}

TEST(VirtualTime, AHopIsWaitedForBehindAShortVisit) {
  // 2 + (10 + 40), twice, and the last visit.
  const StepTimes times = rotated(simple_machine(), {40000, 40000, 40000}, {5, 5, 5});
  for (const double us : times.rank_us) EXPECT_NEAR(us, 2 * 52 + 5, 1e-9);
  EXPECT_NEAR(of(times.mean, Share::kWait), 2 * 45, 1e-9);
}

TEST(VirtualTime, ASlowRankHoldsUpItsNeighboursHopByHop) {
  // Rank 1 visits for 100. The second hop to it and from it starts when it has come there, at 2 +
  // 100 + 2, and takes 15; the others have made their second visit by then and make their third.
  const StepTimes times = rotated(simple_machine(), {5000, 5000, 5000}, {20, 100, 20});
  EXPECT_NEAR(times.rank_us[1], 3 * 100 + 2 * 2, 1e-9);
  EXPECT_NEAR(times.rank_us[0], 104 + 15 + 20, 1e-9);
  EXPECT_NEAR(times.rank_us[2], 104 + 15 + 20, 1e-9);
}

TEST(VirtualTime, EmptyPayloadsDoNotTravel) {
  // Only rank 0 has something: it sends once, rank 1 forwards it, rank 2 ends with it.
  const StepTimes times = rotated(simple_machine(), {5000, 0, 0}, {0, 0, 0});
  EXPECT_NEAR(times.rank_us[0], 2 + 15, 1e-9);
  EXPECT_NEAR(times.rank_us[1], 2 + 15 + 2 + 15, 1e-9);
  EXPECT_NEAR(times.rank_us[2], 2 + 15 + 2 + 15, 1e-9);
}

TEST(VirtualTime, WhatDoesNotOverlapIsTheRanksOwnTime) {
  Machine machine = simple_machine();
  machine.overlap = 0;
  const StepTimes times = rotated(machine, {5000, 5000, 5000}, {50, 50, 50});
  for (const double us : times.rank_us) EXPECT_NEAR(us, 3 * 50 + 2 * (2 + 15), 1e-9);
}

TEST(VirtualTime, TpRanksShareTheNicsOfANode) {
  Machine machine = simple_machine();
  machine.gpus_per_node = 8;
  machine.nics_per_node = 2;
  EXPECT_NEAR(Cost(machine, {8, 2}).wire_us(1000, 0, 1), 10 + 4, 1e-9);
  EXPECT_NEAR(Cost(machine, {1, 16}).wire_us(1000, 7, 8), 10 + 1, 1e-9);
  EXPECT_NEAR(Cost(machine, {1, 16}).wire_us(1000, 6, 7), 0.01, 1e-9);  // within the node
  EXPECT_NEAR(Cost(machine, {1, 16}).collective_wire_us(0, 1000), 4, 1e-9);
}

TEST(VirtualTime, ACollectiveWaitsForTheLastRank) {
  const Machine machine = simple_machine();
  Cost cost(machine, {1, 3});
  std::vector<RankTrace> traces;
  for (int32_t r = 0; r < 3; ++r) {
    Recorder recorder(cost, {1, 3}, r);
    VirtualQueue queue(&recorder);
    recorder.begin_step();
    recorder.work(Share::kAttend, 10.0 * (r + 1));
    const std::vector<int64_t> bytes = {1000, 1000, 1000};
    std::byte* const at = queue.scratch<std::byte>(4000);
    recorder.groups().cp->all_gather(queue, {at, 1000}, {at + 1000, 3000}, bytes, {});
    traces.push_back({recorder.take(), 1});
  }
  // 30, then 7 and two payloads at 1000 bytes a microsecond.
  for (const double us : replay(traces).rank_us) EXPECT_NEAR(us, 30 + 7 + 2, 1e-9);
}

TEST(VirtualTime, ARepeatedLayerStandsForAll) {
  const SimModel model = sim_model("smollm2-135m").value();
  Machine machine = simple_machine();
  machine.hop_us = 20;
  for (const auto variant :
       {parallel::Variant::kPassKv, parallel::Variant::kPassQ, parallel::Variant::kGatherQ}) {
    Workload work;
    work.cached = 101;
    work.prompt = 331;  // not even over the ranks
    work.answer = 3;
    work.batch = 2;
    work.variant = variant;
    const Topology t{1, 5};
    const Simulated once = simulate(model, machine, t, work).value();
    const Simulated all = simulate(model, machine, t, work, true).value();
    EXPECT_NEAR(once.ttft_us(), all.ttft_us(), 1e-6 * all.ttft_us());
    EXPECT_NEAR(once.ttit_us(), all.ttit_us(), 1e-6 * all.ttit_us());
    ASSERT_EQ(once.decode.size(), 2u);
    EXPECT_EQ(once.prefill[0].new_tokens, 2 * 331);
    for (size_t i = 0; i < kShares; ++i) {
      EXPECT_NEAR(once.prefill[0].times.mean[i], all.prefill[0].times.mean[i],
                  1e-6 * all.ttft_us());
    }
  }
}

TEST(VirtualTime, VisiblePairsAreCountedFromPositions) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> q, k;
    for (std::vector<int32_t>* list : {&q, &k}) {
      int32_t at = static_cast<int32_t>(random() % 30);
      const int pieces = 1 + static_cast<int>(random() % 4);
      for (int piece = 0; piece < pieces; ++piece) {
        const int stride = random() % 3 == 0 ? 4 : 1, count = 1 + static_cast<int>(random() % 20);
        for (int i = 0; i < count; ++i, at += stride) list->push_back(at);
        at += static_cast<int32_t>(random() % 10);
      }
    }
    double pairs = 0;
    for (const int32_t a : q) {
      for (const int32_t b : k) pairs += b <= a;
    }
    ASSERT_EQ(visible_pairs(q, k), pairs) << round;
  }
}

}  // namespace
}  // namespace annulus::bench
