// SPDX-License-Identifier: Apache-2.0
// Sizing: which layouts hold a model and a context in the memory of their ranks, and what to say
// where this one does not. PURE. For `annulus plan`, and for GPUs that are asked before anything is
// loaded.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/model/checkpoint.h"
#include "parallel/rank_memory.h"

namespace annulus::server {

inline constexpr double kGib = 1024.0 * 1024 * 1024;
// Of a GPU, what a rank cannot have. The context, and what the driver keeps to itself, are gone
// from what a process is told is free.
inline constexpr double kContextGib = 1;
// Libraries, NCCL's buffers, and decode's graphs: at most 128 of 2,000 nodes of 2 KB
// (kernels/cuda/graphs.cc).
inline constexpr double kLibrariesGib = 1.5;

struct Layout {
  parallel::MemoryQuestion question;
  parallel::RankMemory memory;
  int64_t most_tokens = 0;
  int ranks() const { return question.topology.world(); }
};

struct LayoutLimits {
  int most_tp = 8;  // it stays inside a node
  int most_ranks = 1024;
};

// For each TP, the fewest CP ranks (1, 2, 4, ...) that hold it; TPs for which none do are left out.
std::vector<Layout> layouts_that_fit(const parallel::Checkpoint& checkpoint,
                                     parallel::MemoryQuestion question, double memory_bytes,
                                     const LayoutLimits& limits);
// Of equals the larger TP: it has the shorter steps. Null: there are none.
const Layout* fewest_ranks(const std::vector<Layout>& layouts);

struct DeviceRoom {
  std::string device;  // "GPU 0 (NVIDIA H100 80GB HBM3)"
  int64_t free_bytes = 0;
  int64_t held_bytes = 0;  // of the rank's weights, which are there already
};

// FailedPrecondition where the device cannot be a rank that `question` describes: how much each
// part needs, which layout would fit, what else can be lowered.
absl::Status check_room(const parallel::Checkpoint& checkpoint,
                        const parallel::MemoryQuestion& question, const DeviceRoom& room);

}  // namespace annulus::server
