// SPDX-License-Identifier: Apache-2.0
#include "server/weight_routes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"

namespace annulus::server {
namespace {

using parallel::Topology;
using parallel::WeightRoute;
using Facts = std::vector<WeightFacts>;

// "0>2>1": CP ranks of a slice in the order of its chain; "": nobody sends.
std::string chain_of(const std::vector<WeightRoute>& routes, const Topology& topology,
                     int32_t tp_rank) {
  const auto route = [&](int32_t cp_rank) {
    return routes[static_cast<size_t>(topology.world_rank(tp_rank, cp_rank))];
  };
  for (int32_t first = 0; first < topology.cp; ++first) {
    if (route(first).to < 0 || route(first).from >= 0) continue;
    std::string chain = absl::StrCat(first);
    for (int32_t at = first; route(at).to >= 0; at = route(at).to) {
      EXPECT_EQ(route(route(at).to).from, at);
      absl::StrAppend(&chain, ">", route(at).to);
    }
    return chain;
  }
  return "";
}

std::string chain(const Facts& facts, WeightPolicy policy) {
  const Topology topology{1, static_cast<int32_t>(facts.size())};
  const auto routes = route_weights(topology, facts, policy);
  return routes.ok() ? chain_of(*routes, topology, 0) : std::string(routes.status().message());
}

TEST(WeightRoutes, AutoReadsLocalFilesAndSendsWhatAServerKeeps) {
  const auto on = [](const char* host, ModelFile file) { return WeightFacts{host, false, file}; };
  const Facts local = {on("a", ModelFile::kLocal), on("b", ModelFile::kLocal)};
  EXPECT_EQ(chain(local, WeightPolicy::kAuto), "");
  EXPECT_EQ(chain(local, WeightPolicy::kSend), "0>1");
  const Facts shared = {on("a", ModelFile::kShared), on("b", ModelFile::kShared),
                        on("a", ModelFile::kShared), on("b", ModelFile::kShared)};
  EXPECT_EQ(chain(shared, WeightPolicy::kAuto), "0>1>3");
  EXPECT_EQ(chain(shared, WeightPolicy::kRead), "");
  EXPECT_EQ(chain(shared, WeightPolicy::kSend), "0>2>1>3");  // each host once
  const Facts mixed = {on("a", ModelFile::kShared), on("b", ModelFile::kLocal),
                       on("c", ModelFile::kNone)};
  EXPECT_EQ(chain(mixed, WeightPolicy::kAuto), "1>0>2");
}

TEST(WeightRoutes, HoldersAreSourcesAndReceiveNothing) {
  Facts facts = {{"a", false, ModelFile::kShared},
                 {"b", true, ModelFile::kShared},
                 {"c", true, ModelFile::kNone},
                 {"d", false, ModelFile::kNone}};
  EXPECT_EQ(chain(facts, WeightPolicy::kAuto), "1>0>3");
  EXPECT_EQ(chain(facts, WeightPolicy::kSend), "1>0>3");
  for (WeightFacts& rank : facts) rank.holds = true;
  EXPECT_EQ(chain(facts, WeightPolicy::kSend), "");
}

TEST(WeightRoutes, WhereNobodyCanSendTheErrorNamesRankAndHost) {
  const Facts nobody = {{"a", false, ModelFile::kNone}, {"b", false, ModelFile::kNone}};
  EXPECT_EQ(chain(nobody, WeightPolicy::kAuto),
            "rank 0 on a has no model file, nor has any rank of tensor-parallel slice 0: start one "
            "of them with --model");
  const Facts one = {{"a", false, ModelFile::kLocal}, {"b", false, ModelFile::kNone}};
  EXPECT_EQ(chain(one, WeightPolicy::kRead),
            "rank 1 on b has no model file, and --weights read lets nobody send: start it with "
            "--model, or serve with --weights auto");
}

// Whatever the facts: every rank ends with weights, chains stay in their slice, and each host is
// entered once.
TEST(WeightRoutes, EveryRankGetsWeightsOnce) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    const Topology topology{1 + static_cast<int32_t>(random() % 3),
                            1 + static_cast<int32_t>(random() % 6)};
    Facts facts;
    for (int32_t rank = 0; rank < topology.world(); ++rank) {
      facts.push_back({absl::StrCat("h", random() % 3), random() % 3 == 0,
                       static_cast<ModelFile>(random() % 3)});
    }
    const auto policy = static_cast<WeightPolicy>(random() % 3);
    const auto routes = route_weights(topology, facts, policy);
    if (!routes.ok()) continue;
    for (int32_t rank = 0; rank < topology.world(); ++rank) {
      const WeightRoute& route = (*routes)[static_cast<size_t>(rank)];
      const WeightFacts& fact = facts[static_cast<size_t>(rank)];
      EXPECT_FALSE(fact.holds && route.from >= 0);
      EXPECT_TRUE(fact.holds || fact.file != ModelFile::kNone || (route.from >= 0 && route.table));
      for (const int32_t peer : {route.from, route.to}) {
        EXPECT_LT(peer, topology.cp);
        EXPECT_NE(peer, topology.cp_rank(rank));
      }
    }
    for (int32_t tp_rank = 0; tp_rank < topology.tp; ++tp_rank) {
      size_t members = 0, in_chain = 0;
      std::string hosts;
      const std::string order = chain_of(*routes, topology, tp_rank);
      for (const char c : order) {
        if (c == '>') continue;
        ++in_chain;
        const auto rank = static_cast<size_t>(topology.world_rank(tp_rank, c - '0'));
        if (hosts.empty() || hosts.back() != facts[rank].host[1]) hosts += facts[rank].host[1];
      }
      for (int32_t cp_rank = 0; cp_rank < topology.cp; ++cp_rank) {
        const auto& route = (*routes)[static_cast<size_t>(topology.world_rank(tp_rank, cp_rank))];
        if (route.from >= 0 || route.to >= 0) ++members;
      }
      EXPECT_EQ(members, in_chain) << order;
      std::sort(hosts.begin(), hosts.end());
      EXPECT_EQ(std::adjacent_find(hosts.begin(), hosts.end()), hosts.end()) << order;
    }
  }
}

}  // namespace
}  // namespace annulus::server
