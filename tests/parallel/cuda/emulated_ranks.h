// SPDX-License-Identifier: Apache-2.0
// The ranks of an engine on emulated GPUs, joined by a scripted NCCL, each on a thread.
#pragma once

#include <barrier>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "kernels/cuda/matrix.h"
#include "parallel/comm_nccl.h"
#include "parallel/weight_transfer.h"
#include "tests/parallel/cuda/engine_problem.h"
#include "tests/parallel/cuda/scripted_nccl.h"
#include "tests/support/run_ranks.h"

namespace annulus::parallel {

using kernels::CudaQueue;

// Rank 0 of each TP slice reads, and where `sent`, the others are sent what it has.
inline std::shared_ptr<const LlamaWeights<CudaQueue>> weights_of(const EngineProblem& problem,
                                                                 CudaQueue& queue, NcclWorld& world,
                                                                 Topology topology, int32_t me) {
  const int32_t cp_rank = topology.cp_rank(me);
  const WeightWish wish{*problem.checkpoint,
                        topology.tp_rank(me),
                        topology.tp,
                        problem.precision,
                        {.from = cp_rank - 1, .to = cp_rank + 1 < topology.cp ? cp_rank + 1 : -1},
                        {}};
  auto& cp = *world.groups().cp;
  auto weights = std::make_shared<LlamaWeights<CudaQueue>>();
  const std::function loader = [] { return std::make_unique<CudaQueue>(0); };
  const absl::Status status = cp_rank == 0
                                  ? read_weights<CudaQueue>(queue, loader, cp, wish, *weights)
                                  : receive_weights(queue, cp, wish, *weights);
  EXPECT_TRUE(status.ok()) << status;
  const absl::Status same =
      compare_weights(queue, *world.groups().world, topology, digest_of(queue, *weights));
  EXPECT_TRUE(same.ok()) << same;
  return weights;
}

// How plans are run; what is told, each rank is told on its thread.
struct Manner {
  bool sent = false;  // weights
  int32_t most = 1;   // steps under way
  bool tells = false;
  NcclOptions options = {};
  std::function<void(size_t step)> ended = {};
  std::function<void()> begun = {};
  std::function<void(CudaQueue&queue)> at_first = {}, at_last = {};
};

// body(me, world, rank) on every rank of a connected world; nobody leaves before all have ended. A
// rank that the body makes outlives the world, as a worker's does.
template <class Body>
void on_worlds(Topology topology, const NcclOptions& options, const Body& body) {
  const int32_t ranks = topology.world();
  std::vector<std::string> addresses(static_cast<size_t>(ranks));
  std::barrier all(ranks);
  annulus::testing::run_ranks(ranks, [&](int32_t me) {
    std::unique_ptr<Rank> rank;
    auto world =
        NcclWorld::create(annulus::testing::scripted_nccl(), topology, me, 1, options).value();
    addresses[static_cast<size_t>(me)] = world->address();
    all.arrive_and_wait();
    ASSERT_TRUE(world->connect(addresses).ok());
    body(me, *world, rank);
    all.arrive_and_wait();
    world.reset();
  });
  EXPECT_EQ(annulus::testing::nccl_script().live, 0);
}

inline Answers answers_of(const EngineProblem& problem, Topology topology, Variant variant,
                          const Manner& manner = {}) {
  std::mutex mutex;  // guards answers
  Answers answers(problem.of_cpu.size());
  on_worlds(topology, manner.options, [&](int32_t me, NcclWorld& world, auto& rank) {
    auto owned = std::make_unique<CudaQueue>(0);
    CudaQueue& queue = *owned;
    if (manner.sent) {
      auto weights = weights_of(problem, queue, world, topology, me);
      rank = problem.rank_on(std::move(owned), world.groups(), topology, me, std::move(weights));
    } else {
      rank = problem.rank_on(std::move(owned), world.groups(), topology, me);
    }
    if (manner.at_first) manner.at_first(queue);
    problem.run(
        *rank, topology, me, variant,
        [&](size_t step, const auto& wanted) {
          if (manner.ended) manner.ended(step);
          const std::lock_guard lock(mutex);
          answers[step].insert(answers[step].end(), wanted.begin(), wanted.end());
        },
        manner.most, manner.begun, manner.tells);
    if (manner.at_last) manner.at_last(queue);
  });
  return answers;
}

}  // namespace annulus::parallel
