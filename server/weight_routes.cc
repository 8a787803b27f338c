// SPDX-License-Identifier: Apache-2.0
#include "server/weight_routes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace annulus::server {
namespace {

// The facts of a TP slice, by CP rank.
using Slice = std::vector<const WeightFacts*>;

int32_t first_that(const Slice& slice, bool (*fits)(const WeightFacts&)) {
  const auto found =
      std::find_if(slice.begin(), slice.end(), [&](const auto* rank) { return fits(*rank); });
  return found == slice.end() ? -1 : static_cast<int32_t>(found - slice.begin());
}

int32_t source_of(const Slice& slice) {
  for (const auto fits :
       {+[](const WeightFacts& rank) { return rank.holds; },
        +[](const WeightFacts& rank) { return rank.file == ModelFile::kLocal; },
        +[](const WeightFacts& rank) { return rank.file == ModelFile::kShared; }}) {
    if (const int32_t rank = first_that(slice, fits); rank >= 0) return rank;
  }
  return -1;
}

bool is_sent(const WeightFacts& rank, const WeightFacts& source, WeightPolicy policy) {
  if (rank.holds || &rank == &source) return false;
  if (rank.file == ModelFile::kNone || policy == WeightPolicy::kSend) return true;
  return policy == WeightPolicy::kAuto && rank.file == ModelFile::kShared &&
         rank.host != source.host;
}

}  // namespace

std::optional<WeightPolicy> parse_weight_policy(std::string_view text) {
  if (text == "auto") return WeightPolicy::kAuto;
  if (text == "read") return WeightPolicy::kRead;
  if (text == "send") return WeightPolicy::kSend;
  return std::nullopt;
}

absl::StatusOr<std::vector<parallel::WeightRoute>> route_weights(
    const parallel::Topology& topology, const std::vector<WeightFacts>& ranks,
    WeightPolicy policy) {
  std::vector<parallel::WeightRoute> routes(ranks.size());
  for (int32_t tp_rank = 0; tp_rank < topology.tp; ++tp_rank) {
    Slice slice;
    for (int32_t cp_rank = 0; cp_rank < topology.cp; ++cp_rank) {
      slice.push_back(&ranks[static_cast<size_t>(topology.world_rank(tp_rank, cp_rank))]);
    }
    const auto fact = [&](int32_t cp_rank) { return slice[static_cast<size_t>(cp_rank)]; };
    const int32_t source = source_of(slice);
    if (source < 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", topology.world_rank(tp_rank, 0), " on ", slice.front()->host,
                       " has no model file, nor has any rank of tensor-parallel slice ", tp_rank,
                       ": start one of them with --model"));
    }
    std::vector<int32_t> chain = {source};
    bool table = false;
    for (int32_t rank = 0; rank < topology.cp; ++rank) {
      if (!is_sent(*fact(rank), *fact(source), policy)) continue;
      if (policy == WeightPolicy::kRead) {
        return absl::FailedPreconditionError(absl::StrCat(
            "rank ", topology.world_rank(tp_rank, rank), " on ", fact(rank)->host,
            " has no model file, and --weights read lets nobody send: start it with --model, or "
            "serve with --weights auto"));
      }
      chain.push_back(rank);
      table = table || fact(rank)->file == ModelFile::kNone;
    }
    // Hosts in the order in which the chain first meets them.
    const std::vector<int32_t> met = chain;
    const auto turn = [&](int32_t rank) {
      return std::find_if(met.begin(), met.end(),
                          [&](int32_t other) { return fact(other)->host == fact(rank)->host; });
    };
    std::stable_sort(chain.begin(), chain.end(),
                     [&](int32_t a, int32_t b) { return turn(a) < turn(b); });
    for (size_t i = 0; chain.size() > 1 && i < chain.size(); ++i) {
      routes[static_cast<size_t>(topology.world_rank(tp_rank, chain[i]))] = {
          .from = i > 0 ? chain[i - 1] : -1,
          .to = i + 1 < chain.size() ? chain[i + 1] : -1,
          .table = table};
    }
  }
  return routes;
}

}  // namespace annulus::server
