// SPDX-License-Identifier: Apache-2.0
// Case files of tests/golden (README there): what to ask, and how an engine's answer is written
// down. JSON Lines.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::bench {

struct GoldenCase {
  std::string name;
  std::vector<int32_t> prompt_ids, ids;            // ids: the greedy continuation
  std::vector<std::vector<int32_t>> step_top_ids;  // [ids]
  std::vector<int64_t> probe_positions;
  std::vector<std::vector<int32_t>> probe_top_ids;  // [probe_positions]
  std::string session;                              // turns of one session run one after the other
  int64_t reused = 0;  // of prompt_ids: the previous turn's prompt and answer
  std::string batch;   // cases of one batch run at the same time
  bool nll = false;
};

// A position's answer: the most likely id, and log-probabilities of the golden's top ids.
struct GoldenPosition {
  int32_t argmax = -1;
  std::vector<double> logprobs;
};

struct GoldenAnswer {
  std::string name;
  std::vector<GoldenPosition> steps, probes;  // teacher-forced
  std::vector<int32_t> ids;                   // free-running
  std::optional<double> mean;                 // likelihood
  std::vector<double> block_means;
};

absl::StatusOr<std::vector<GoldenCase>> read_cases(const std::string& path);
absl::Status write_answers(const std::string& path, const std::vector<GoldenAnswer>& answers);
absl::StatusOr<std::vector<GoldenAnswer>> read_answers(const std::string& path);

// Largest difference of two answers' log-probabilities (and likelihoods) over the cases that both
// hold.
absl::StatusOr<double> worst_difference(const std::vector<GoldenAnswer>& a,
                                        const std::vector<GoldenAnswer>& b);

// Mean and 512-wide block means of losses, where losses[i] belongs to target position i + 1.
void summarise_losses(const std::vector<double>& losses, GoldenAnswer& answer);

}  // namespace annulus::bench
