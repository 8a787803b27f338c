// SPDX-License-Identifier: Apache-2.0
#include "server/app/sizing.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace annulus::server {
namespace {

using parallel::Checkpoint;
using parallel::MemoryQuestion;
using parallel::RankMemory;

// The largest context below 2^40 that fits.
int64_t most_tokens(const Checkpoint& checkpoint, MemoryQuestion question, double memory_bytes) {
  int64_t low = question.context, high = int64_t{1} << 40;
  while (high - low > 1) {
    question.context = low + (high - low) / 2;
    const bool fits =
        static_cast<double>(parallel::rank_memory(checkpoint, question).total()) <= memory_bytes;
    (fits ? low : high) = question.context;
  }
  return low;
}

std::optional<Layout> smallest(const Checkpoint& checkpoint, MemoryQuestion question,
                               double memory_bytes, int most_ranks) {
  for (; question.topology.world() <= most_ranks; question.topology.cp *= 2) {
    const RankMemory memory = parallel::rank_memory(checkpoint, question);
    if (static_cast<double>(memory.total()) > memory_bytes) continue;
    return Layout{question, memory, most_tokens(checkpoint, question, memory_bytes)};
  }
  return std::nullopt;
}

std::string gib(double bytes) {
  return absl::StrFormat("%.2f", bytes / kGib);
}
std::string gib(int64_t bytes) {
  return gib(static_cast<double>(bytes));
}

// What else would help, beside another layout: " or lower ...".
std::string what_to_lower(const MemoryQuestion& question, const RankMemory& needs,
                          double memory_bytes) {
  if (static_cast<double>(needs.weight_bytes) >= memory_bytes) return "";
  std::vector<std::string> flags = {question.kv_rows > 0 ? "--kv-rows" : "--context",
                                    "--chunk-tokens"};
  if (needs.workspace_bytes > 0) flags.push_back("--workspace-mib");
  return absl::StrCat(", or lower ", absl::StrJoin(flags, " or "));
}

}  // namespace

std::vector<Layout> layouts_that_fit(const Checkpoint& checkpoint, MemoryQuestion question,
                                     double memory_bytes, const LayoutLimits& limits) {
  std::vector<Layout> out;
  for (const int tp : parallel::valid_tp(checkpoint.config())) {
    if (tp > limits.most_tp) continue;
    question.topology = {tp, 1};
    if (auto found = smallest(checkpoint, question, memory_bytes, limits.most_ranks))
      out.push_back(*found);
  }
  return out;
}

const Layout* fewest_ranks(const std::vector<Layout>& layouts) {
  const auto least = std::min_element(layouts.begin(), layouts.end(), [](auto& a, auto& b) {
    return a.ranks() != b.ranks() ? a.ranks() < b.ranks()
                                  : a.question.topology.tp > b.question.topology.tp;
  });
  return least == layouts.end() ? nullptr : &*least;
}

absl::Status check_room(const Checkpoint& checkpoint, const MemoryQuestion& question,
                        const DeviceRoom& room) {
  const double memory_bytes =
      static_cast<double>(room.free_bytes + room.held_bytes) - kLibrariesGib * kGib;
  const RankMemory needs = parallel::rank_memory(checkpoint, question);
  if (static_cast<double>(needs.total()) <= memory_bytes) return absl::OkStatus();
  const parallel::Topology& here = question.topology;
  const LayoutLimits limits = {.most_tp = std::max(8, here.tp), .most_ranks = 1024};
  const std::vector<Layout> fit = layouts_that_fit(checkpoint, question, memory_bytes, limits);
  std::string instead = absl::StrCat("no layout of up to ", limits.most_ranks,
                                     " such GPUs with TP up to ", limits.most_tp, " would fit");
  if (const Layout* const least = fewest_ranks(fit)) {
    instead = absl::StrCat("--tp ", least->question.topology.tp, " --cp ",
                           least->question.topology.cp, " would fit");
  }
  return absl::FailedPreconditionError(absl::StrCat(
      room.device, " has ", gib(room.free_bytes), " GiB free",
      room.held_bytes > 0 ? absl::StrCat(" beside ", gib(room.held_bytes), " of weights it holds")
                          : "",
      ", and a rank of TP ", here.tp, " x CP ", here.cp, " needs ",
      gib(static_cast<double>(needs.total()) + kLibrariesGib * kGib), ": ", gib(needs.weight_bytes),
      " of weights, ", gib(needs.kv_bytes), " of KV (",
      question.kv_rows > 0 ? absl::StrCat("--kv-rows ", question.kv_rows)
                           : absl::StrCat("context ", question.context),
      "), ", gib(needs.activation_bytes), " of activations, ", gib(needs.workspace_bytes),
      " of attention buffers, ", gib(kLibrariesGib * kGib), " for libraries and graphs: ", instead,
      what_to_lower(question, needs, memory_bytes)));
}

}  // namespace annulus::server
