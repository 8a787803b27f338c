// SPDX-License-Identifier: Apache-2.0
#include "parallel/examine.h"

#include <cmath>
#include <mutex>

#include "tests/parallel/comm/worlds.h"

namespace annulus::parallel {
namespace {

bool has_tp(Figure figure) {
  return figure == Figure::kTpBandwidth || figure == Figure::kTpLatency;
}
bool has_cp(Figure figure) {
  return figure == Figure::kCpBandwidth || figure == Figure::kCpLatency;
}

class Examine : public ::testing::TestWithParam<std::tuple<Backend, Topology>> {};

TEST_P(Examine, GivesEveryRankItsOwnFigures) {
  const auto [backend, topology] = GetParam();
  std::mutex mutex;
  std::vector<Examination> all(static_cast<size_t>(topology.world()));
  on_ranks(backend, topology, [&](int32_t rank, Groups<CpuQueue> groups, CpuQueue& queue) {
    int last = 0, parts = 0;
    const Examination own = examine<CpuQueue>(queue, groups, [&](int done, int of) {
      EXPECT_EQ(done, last + 1);
      last = done;
      parts = of;
    });
    EXPECT_EQ(last, parts);
    const std::lock_guard lock(mutex);
    all[static_cast<size_t>(rank)] = own;
  });
  for (const Examination& own : all) {
    for (size_t i = 0; i < kFigures; ++i) {
      const auto figure = static_cast<Figure>(i);
      const bool there = (!has_cp(figure) || std::get<1>(GetParam()).cp > 1) &&
                         (!has_tp(figure) || std::get<1>(GetParam()).tp > 1);
      EXPECT_EQ(own[i].size(), there ? 5u : 0u) << name(figure);
      for (const double value : own[i]) {
        EXPECT_TRUE(std::isfinite(value) && value > 0) << name(figure) << " " << value;
        EXPECT_LT(value, 1e7) << name(figure);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, Examine,
                         ::testing::Values(std::tuple(Backend::kThreads, Topology{1, 1}),
                                           std::tuple(Backend::kThreads, Topology{2, 3}),
                                           std::tuple(Backend::kUcxShared, Topology{2, 2}),
                                           std::tuple(Backend::kUcxTcp, Topology{1, 2})),
                         [](const auto& each) {
                           const Topology topology = std::get<1>(each.param);
                           return name(std::get<0>(each.param)) + "_tp" +
                                  std::to_string(topology.tp) + "_cp" + std::to_string(topology.cp);
                         });

TEST(UcxTransports, AreThoseOfTheLanes) {
  EXPECT_EQ(
      transports_in("#\n# UCP endpoint \n#   peer: host:12\n"
                    "#     lane[0]:  5:posix/memory.0 md[2]  -> md[2]/posix/sysdev[255] am\n"
                    "#     lane[1]:  9:cma/memory.0 md[4]   -> md[4]/cma/sysdev[255] rma_bw#0\n"
                    "#    tag_send: 0..<egr/short>..92\n"),
      "posix/memory, cma/memory");
  EXPECT_EQ(transports_in("# lane[0]:  1:rc_mlx5/mlx5_0:1.0 md[1] -> md[1]/ib am\n"
                          "# lane[1]:  1:rc_mlx5/mlx5_0:1.0 md[1] -> md[1]/ib rma\n"),
            "rc_mlx5/mlx5_0:1");
  EXPECT_EQ(transports_in("nothing of the kind"), "");
  EXPECT_EQ(transports_in("lane["), "");
  EXPECT_EQ(transports_in("lane[0]: no colon"), "");
}

TEST(UcxTransports, OfRealPeersAreWhatWasAllowed) {
  for (const auto& [backend, expected] :
       {std::pair(Backend::kUcxShared, "/memory"), {Backend::kUcxTcp, "tcp/"}}) {
    std::vector<std::unique_ptr<UcxWorld>> worlds;
    std::vector<std::string> addresses;
    const Topology pair{.tp = 1, .cp = 2};
    for (int32_t r = 0; r < 2; ++r) {
      auto world = UcxWorld::create(pair, r, 3, ucx_options(backend));
      ASSERT_TRUE(world.ok()) << world.status();
      addresses.push_back((*world)->address());
      worlds.push_back(*std::move(world));
    }
    for (const auto& world : worlds) ASSERT_TRUE(world->connect(addresses).ok());
    annulus::testing::run_ranks(2, [&](int32_t rank) {
      CpuQueue queue(1);
      float x = 1;
      worlds[static_cast<size_t>(rank)]->groups().cp->all_reduce(queue, std::span(&x, 1), {});
    });
    EXPECT_NE(worlds[0]->transports(1).find(expected), std::string::npos)
        << worlds[0]->transports(1);
    EXPECT_EQ(worlds[0]->transports(0), "");
  }
}

}  // namespace
}  // namespace annulus::parallel
