// SPDX-License-Identifier: Apache-2.0
// The streams of a soak: conversations of one or two turns with known answers, and what becomes of
// a stream. A conversation's answer is that of the same request alone, kept only where every token
// led the next likely one by more than what another batch, chunk or variant can change.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/client.h"

namespace annulus::bench {

struct Turn {
  std::vector<int32_t> prompt;  // of a later turn: what follows the session's tokens
  int max_tokens = 0;
  std::vector<uint32_t> ids;  // the answer of this turn alone
  std::string text;
};
using Conversation = std::vector<Turn>;

// Answers within this of each other (natural log) may change places: twice the bound that two
// layouts of this engine are held to in fp32 (5e-4; tests/golden).
inline constexpr double kLeastLead = 1e-3;

// `count` conversations over slices of `ids`, answered one after the other. Near ties are drawn
// again.
absl::StatusOr<std::vector<Conversation>> answered_alone(const Client& client,
                                                         const std::vector<int32_t>& ids, int count,
                                                         int longest, std::mt19937_64& random);

enum class Fate { kWhole, kCancel, kDeadline, kKilledClient };
inline constexpr int kFates = 4;
const char* name(Fate fate);

struct StreamEnd {
  Fate fate = Fate::kWhole;
  std::string wrong;  // "" where it ended as it may
  absl::StatusCode code = absl::StatusCode::kOk;
  int64_t tokens = 0;
};

// Runs one stream to its end. number: names its session. prompt_file: of the conversation's first
// turn, for a client of its own that is killed.
StreamEnd run_stream(const std::string& address, const Client& client, const Conversation& talk,
                     const std::string& prompt_file, int64_t number, std::mt19937_64& random);

}  // namespace annulus::bench
