// SPDX-License-Identifier: Apache-2.0
// Who reads the weights of an epoch and who is sent them, decided by the front end from what every
// rank said of itself. PURE. In each TP slice one rank is the source: the first that holds the
// weights from an earlier epoch, else the first that can read the model's file, a local one before
// a shared one. What the other ranks do that lack them:
//   kRead  each reads its file
//   kSend  each is sent them, in a chain that begins at the source
//   kAuto  one whose file lies on a local disk, or that shares the source's host (and with it what
//          the system has cached of the file), reads; one that would read from a network file
//          system what a peer elsewhere has is sent it
// A rank without a file is always sent them. The chain passes each host once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/topology.h"
#include "parallel/weight_transfer.h"

namespace annulus::server {

enum class WeightPolicy : uint8_t { kAuto, kRead, kSend };
std::optional<WeightPolicy> parse_weight_policy(std::string_view text);  // auto, read, send

enum class ModelFile : uint8_t { kLocal, kShared, kNone };

struct WeightFacts {  // of one rank
  std::string host;
  bool holds = false;
  ModelFile file = ModelFile::kLocal;
};

// By world rank. FailedPrecondition, naming rank and host: a rank without weights and file, to
// which nobody can or may send.
absl::StatusOr<std::vector<parallel::WeightRoute>> route_weights(
    const parallel::Topology& topology, const std::vector<WeightFacts>& ranks, WeightPolicy policy);

}  // namespace annulus::server
